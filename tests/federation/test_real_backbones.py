"""Federated runs with small models of the real families: clients step side by side in threads."""

import pytest

from helpers import tiny_models
from helpers.runs import Silent
from hushprompt.config import parse as configs
from hushprompt.features.cache import cached
from hushprompt.federation.simulate import run


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    for package in ("open_clip", "transformers", "sentencepiece", "google.protobuf"):
        pytest.importorskip(package)
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("repositories")
    for kind in ("siglip", "clip"):
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
