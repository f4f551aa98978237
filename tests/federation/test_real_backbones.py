"""Federated runs with small models of the real families: clients step side by side in threads."""

import functools
import wave

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

import hushprompt as hp
from helpers import tiny_models
from helpers.runs import TOY, Silent
from hushprompt.config import parse as configs
from hushprompt.features.cache import cached
from hushprompt.federation.simulate import run
from hushprompt.methods import class_statistics


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    for package in ("open_clip", "transformers", "sentencepiece", "google.protobuf"):
        pytest.importorskip(package)
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("repositories")
    for kind in ("siglip", "clip", "clap"):
        (folder / kind).mkdir()
        getattr(tiny_models, kind)(folder / kind)
    tiny_models.write_open_clip_configs(folder)
    __import__("open_clip").add_model_config(folder)
    for kind in ("vit", "resnet"):
        save_file(tiny_models.open_clip_model(kind).state_dict(), folder / f"{kind}.safetensors")
    return folder


@pytest.mark.parametrize("kind", ["open_clip", "transformers"])
def test_results_do_not_depend_on_the_number_of_threads(toy_values, repositories, tmp_path, kind):
    backbone = {"name": "transformers", "model": str(repositories / "siglip"), "template": "a {}"}
    if kind == "open_clip":
        checkpoint = str(repositories / "vit.safetensors")
        backbone = {"name": "open_clip", "architecture": "tiny-vit", "checkpoint": checkpoint, "template": "a {}"}
    references = [
        {"method": {"name": "zero_shot"}},
        {"method": {"name": "promptfl", "num_ctx": 2, "name_position": "middle"}},
    ]
    values = {**toy_values, "backbone": backbone, "references": references, "training": {"num_rounds": 2}}
    prompts = []
    for threads in (1, 3):
        runtime = {"cache_dir": str(tmp_path / "cache"), "num_threads": threads}
        folder = tmp_path / str(threads)
        folder.mkdir()
        arms = run(configs.parse({**values, "runtime": runtime}), folder, Silent())
        assert [arm.method for arm in arms] == ["zero_shot", "promptfl", "dp_fpl"]
        prompts.append({path.name: path.read_bytes() for path in (folder / "prompts").iterdir()})
    assert prompts[0] == prompts[1]
    assert len(prompts[0]) == 4


@pytest.mark.parametrize("kind", ["vit", "resnet", "clip"])
def test_prompts_are_aligned_with_the_patches_of_real_towers(toy_values, repositories, tmp_path, kind):
    backbone = {"name": "transformers", "model": str(repositories / "clip"), "template": "a {}"}
    if kind != "clip":
        checkpoint = str(repositories / f"{kind}.safetensors")
        backbone = {"name": "open_clip", "architecture": f"tiny-{kind}", "checkpoint": checkpoint, "template": "a {}"}
    values = {**toy_values, "backbone": backbone, "references": [], "training": {"num_rounds": 1}}
    values = {**values, "method": {"name": "fedotp", "num_ctx": 2}, "runtime": {"cache_dir": str(tmp_path / "cache")}}
    (arm,) = run(configs.parse(values), tmp_path, Silent())
    assert arm.method == "fedotp"
    num_patches = {"vit": 16, "resnet": 4, "clip": 16}[kind]
    assert {entry.num_patches for entry in cached(tmp_path / "cache")} == {num_patches}
    assert len(list((tmp_path / "prompts").iterdir())) == 4


def examples(folder, classes, count, is_sound):
    """Write class folders of tiny images, or of short sounds, that differ between classes."""
    rng = np.random.default_rng(len(classes))
    for name in classes:
        (folder / name).mkdir(parents=True)
        center = rng.integers(40, 200, 300)
        for index in range(count):
            values = (center + rng.integers(-40, 40, 300)).astype(np.uint8)
            if is_sound:
                with wave.open(str(folder / name / f"{index}.wav"), "wb") as file:
                    file.setparams((1, 2, 8000, 0, "NONE", ""))
                    file.writeframes((100 * (values.astype(np.int16) - 120)).tobytes())
            else:
                Image.fromarray(values.reshape(10, 10, 3)).save(folder / name / f"{index}.png")


@pytest.mark.parametrize("kind", ["vit", "clip", "siglip", "clap"])
def test_class_statistics_run_in_every_form_with_a_metric_made_from_a_folder(repositories, tmp_path, monkeypatch, kind):
    for name in ("fit_class_contexts", "fit_shared_context"):
        monkeypatch.setattr(class_statistics, name, functools.partial(getattr(class_statistics, name), num_steps=2))
    letters = "abdeghiklmoprstuwy"
    names = [f"{a}{b}" for a in letters for b in letters if a != b][:100]
    examples(tmp_path / "public", names, 2, kind == "clap")
    examples(tmp_path / "own", ["cat", "ox", "dog", "lynx"], 8, kind == "clap")
    backbone = {"name": "clap" if kind == "clap" else "transformers", "model": str(repositories / kind)}
    if kind == "vit":
        checkpoint = str(repositories / "vit.safetensors")
        backbone = {"name": "open_clip", "architecture": "tiny-vit", "checkpoint": checkpoint}
    common = {"backbone": {**backbone, "template": "a {}"}, "runtime": {"cache_dir": str(tmp_path / "cache")}}
    sounds = {"sampling_rate": 8000} if kind == "clap" else {}
    public = {"name": "folder", "root": str(tmp_path / "public"), **sounds}
    metric = hp.make_metric(config={**TOY, **common, "data": public}, out=tmp_path / "metric", progress=False)
    forms = ["head", "embeddings", "shared_context", "contexts"]
    methods = [{"name": "class_statistics", "form": form, "metric": str(metric)} for form in forms]
    values = {
        "data": {"name": "folder", "root": str(tmp_path / "own"), **sounds},
        "partition": {"name": "disjoint_classes", "num_clients": 2},
        "privacy": {"epsilon": 50.0, "delta": 1e-3, "audience": "public", "noise_source": "seeded"},
        "evaluation": {"split": "test"},
        "references": [{"method": method} for method in methods[:-1]],
        "method": methods[-1],
    }
    (tmp_path / "run").mkdir()
    arms = run(configs.parse({**common, **values}), tmp_path / "run", Silent())
    assert [arm.method for arm in arms] == ["class_statistics"] * 4
    file = load_file(tmp_path / "run" / "prompts" / "global.safetensors")
    assert file["context"].ndim == 3
    assert file["text_features"].isfinite().all()
