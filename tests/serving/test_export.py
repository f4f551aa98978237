"""What every export holds, what the formats write, and what is refused; ONNX has a file of its own."""

import dataclasses
import importlib.util
import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import hushprompt as hp
from helpers import tiny_models
from helpers.pictures import pictures
from helpers.prompt_files import written
from helpers.runs import TOY
from helpers.toy_metric import toy_metric
from hushprompt.errors import ConfigError, DataError
from hushprompt.runs import records
from hushprompt.serving.export import scripts
from hushprompt.serving.export.formats import FORMATS

FEATURES = torch.nn.functional.normalize(torch.randn(9, 6, generator=torch.Generator().manual_seed(1)), dim=1)
STATISTICS = {"name": "class_statistics", "metric": toy_metric(), "class_prior": 3.0}
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run on the toy backbone."""
    folder = tmp_path_factory.mktemp("export")
    return hp.run({**TOY, "runtime": {"cache_dir": str(folder)}}, out=folder / "run", progress=False).folder


def test_file_run_folder_and_export_give_the_same_answer(trained, tmp_path):
    images = pictures(tmp_path)
    wanted = hp.load(trained).prompt(client=1).probabilities(images)
    sources = [(trained, 1), (trained / "prompts" / "client-001.safetensors", None)]
    for index, (source, client) in enumerate(sources):
        folder = hp.export(source, to="head", out=tmp_path / str(index), client=client)
        again = hp.export(folder, to="card", out=tmp_path / f"{index} again")
        for one in (folder, again):
            prompt = hp.load_prompt(one)
            assert abs(prompt.probabilities(images) - wanted).max() < 1e-6
            assert (prompt.header.client_id, prompt.privacy) == (1, hp.load(trained).prompt(client=1).privacy)


@pytest.mark.parametrize("method", [TOY["method"], STATISTICS], ids=lambda method: method["name"])
def test_a_head_scores_by_itself(method, tmp_path):
    written(method, tmp_path / "prompts")
    prompt = hp.load_prompt(tmp_path / "prompts", client=1)
    path = hp.export(prompt, to="head", out=tmp_path / "head") / "head.safetensors"
    head = load_file(path)
    assert ("bias" in head) == (method is STATISTICS)
    scores = head["logit_scale"] * FEATURES @ head["weight"].T + head.get("bias", 0)
    torch.testing.assert_close(scores, prompt.logits(FEATURES))
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["hushprompt"])
    assert (tuple(about["class_names"]), about["privacy"]) == (prompt.classes, prompt.privacy)
    assert about["backbone_fingerprint"] == prompt.load_backbone().fingerprint


def test_a_file_of_format_1_is_completed(tmp_path):
    written(TOY["method"], tmp_path / "prompts")
    path = tmp_path / "prompts" / "client-001.safetensors"
    new = hp.load_prompt(path)
    kept = ("prompt", "method", "backbone_fingerprint", "class_names", "privacy", "client_id", "noise_source")
    old = {name: getattr(new.header, name) for name in kept} | {"format": "hushprompt prompt 1"}
    save_file({"context": new.tensors["context"]}, path, {"hushprompt": json.dumps(old)})
    with pytest.raises(ConfigError, match="was loaded without a backbone"):
        hp.export(path, to="head", out=tmp_path / "head")
    prompt = hp.load_prompt(hp.export(path, to="head", out=tmp_path / "head", backbone="toy"))
    torch.testing.assert_close(prompt.logits(FEATURES), new.logits(FEATURES))
    assert prompt.load_backbone().fingerprint == new.header.backbone_fingerprint


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    written({"name": "fedclip"}, tmp_path / "fedclip")
    written({"name": "fedotp", "num_ctx": 4}, tmp_path / "fedotp")
    out = tmp_path / "out"
    for source, to, error, words in [
        ("fedclip", "peft", ConfigError, "this one belongs to a model that compares features. Use another format"),
        ("fedclip", "head", DataError, "No linear scores follow from attention_bias"),
        ("fedclip", "open_clip", ConfigError, "belongs to the backbone toy, which open_clip does not run"),
        ("fedclip", "onnx", ConfigError, "image tower cannot be exported: it has none that works without this package"),
        ("fedotp", "onnx", DataError, "fedotp compares patches of an image in steps that depend on it"),
    ]:
        monkeypatch.setattr("hushprompt.serving.export.onnx_file.require", lambda *packages: None)
        with pytest.raises(error, match=re.escape(words)):
            hp.export(tmp_path / source, to=to, out=out)
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"The format onnx needs the package onnx\. Get it with: .*\[onnx\]"):
        hp.export(tmp_path / "fedclip", to="onnx", out=out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fedclip", "fedotp"]


def test_no_folder_is_overwritten(tmp_path):
    written(TOY["method"], tmp_path / "prompts")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    for taken in ("out", "out/mine"):
        with pytest.raises(ConfigError, match="nothing is overwritten"):
            hp.export(tmp_path / "prompts", to="head", out=tmp_path / taken)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    assert hp.load_prompt(hp.export(tmp_path / "prompts", to="head", out=tmp_path / "empty")).classes


def test_the_command_tells_what_the_holder_may_know(hush, tmp_path):
    written(TOY["method"], tmp_path / "prompts")
    done = hush("export", "prompts", "--client", "1", "--to", "head", "-o", "head")
    held = hp.load_prompt("prompts", client=1).privacy
    assert done.err.strip() == f"A client's personal prompt: who has this folder is its holder. {held}"
    assert done.out.split()[::3] == ["head/head.safetensors", "head/prompt.safetensors"]
    assert hush("export", "prompts", "--to", "head", "-o", "all").err.startswith("epsilon = ")
    done = hush("export", "prompts", "--to", "tensorrt", "-o", "other", ok=False)
    assert "to must be one of head, onnx, open_clip, transformers, peft, card, got 'tensorrt'" in done.err
    assert f"The format: {', '.join(FORMATS)}." in " ".join(hush("export", "--help").out.replace("│", " ").split())


def program_of(folder, monkeypatch, *arguments):
    """Run the program of an export; return its probabilities."""
    monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, arguments)])
    return runpy.run_path(str(folder / "predict.py"))["probabilities"]


@pytest.mark.parametrize("is_quick", [False, True])
def test_the_program_for_open_clip_gives_the_same_probabilities(is_quick, tmp_path, monkeypatch, capsys):
    open_clip = pytest.importorskip("open_clip")
    (tmp_path / "models").mkdir()
    tiny_models.write_open_clip_configs(tmp_path / "models")
    open_clip.add_model_config(tmp_path / "models")
    weights, archive = tmp_path / "weights.safetensors", tmp_path / "ViT.pt"
    network = tiny_models.open_clip_model("vit-quickgelu" if is_quick else "vit")
    save_file(network.state_dict(), weights)
    if is_quick:  # OpenAI's own file, of an architecture whose name does not say that GELU is quick
        tiny_models.openai_archive(network, archive)
    checkpoint = archive if is_quick else weights
    backbone = {"name": "open_clip", "architecture": "tiny-vit", "checkpoint": str(checkpoint)}
    written(TOY["method"], tmp_path / "prompts", backbone=backbone)
    prompt = hp.load_prompt(tmp_path / "prompts", client=1, backbone=backbone)
    folder, images = hp.export(prompt, to="open_clip", out=tmp_path / "out"), pictures(tmp_path)
    found = program_of(folder, monkeypatch, weights, *images)
    torch.testing.assert_close(found, torch.from_numpy(prompt.probabilities(images)), rtol=0, atol=1e-5)
    assert prompt.predict(images[0]).label in capsys.readouterr().out.splitlines()[0]
    with pytest.raises(ConfigError, match=r"a file or folder of another machine.*with checkpoint: load_prompt"):
        hp.load_prompt(folder).predict(images[0])
    assert str(tmp_path) not in "".join(path.read_bytes().decode("latin-1") for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_program_for_transformers_gives_the_same_probabilities(kind, tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    (tmp_path / "model").mkdir()
    getattr(tiny_models, kind)(tmp_path / "model")
    backbone = {"name": "transformers", "model": str(tmp_path / "model")}
    written(TOY["method"], tmp_path / "prompts", backbone=backbone)
    prompt = hp.load_prompt(tmp_path / "prompts", client=1, backbone=backbone)
    folder, images = hp.export(prompt, to="transformers", out=tmp_path / "out"), pictures(tmp_path)
    found = program_of(folder, monkeypatch, tmp_path / "model", *images)
    torch.testing.assert_close(found, torch.from_numpy(prompt.probabilities(images)), rtol=0, atol=1e-5)
    assert prompt.privacy in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"a file or folder of another machine.*with model: load_prompt"):
        hp.load_prompt(folder).predict(images[0])
    with pytest.raises(ConfigError, match="which open_clip does not run"):
        hp.export(prompt, to="open_clip", out=tmp_path / "other")
    header = dataclasses.replace(prompt.header, backbone={**prompt.header.backbone, "precision": "bfloat16"})
    with pytest.raises(ConfigError, match="The program computes in float32, and this prompt's backbone in bfloat16"):
        hp.export(dataclasses.replace(prompt, header=header), to="transformers", out=tmp_path / "other")


def test_the_programs_on_the_page_are_those_of_the_exports():
    page = (DOCS / "prompt-files.md").read_text(encoding="utf-8")
    for program in (
        scripts.open_clip_script({"architecture": "ViT-B-16", "pretrained": "openai"}, ", force_quick_gelu=True"),
        scripts.transformers_script({"model": "openai/clip-vit-base-patch16"}),
    ):
        assert f"```python\n{program}```" in page
        assert len([line for line in program.splitlines()[1:] if line]) <= 18


def test_a_programs_model_is_named_or_asked_for():
    named = scripts.open_clip_script({"architecture": "hf-hub:org/name"})
    assert 'create_model("hf-hub:org/name")' in named
    asked = scripts.open_clip_script({})
    assert "python predict.py local-dir:FOLDER photo.jpg" in asked
    assert "create_model(sys.argv.pop(1))" in asked


def test_the_card_says_what_is_guaranteed_to_whom(trained, tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    run, folder = hp.load(trained), hp.export(trained, to="card", out=tmp_path / "card", client=1)
    text = (folder / "README.md").read_text(encoding="utf-8")
    about = huggingface_hub.ModelCard(text).data
    assert (about.library_name, about.pipeline_tag) == ("hushprompt", "image-classification")
    assert about.tags == ["prompt-learning", "differential-privacy", "federated-learning", "dp_fpl"]
    for held in run.guarantees.values():
        cells = [f"{held.epsilon:.4g} (simulation)", "0.001", "example", "add_remove", held.sampling, held.accountant]
        assert f"| {' | '.join(cells)} |" in text
        assert held.statement() in text
    for words in (
        "A client's personal prompt",
        "`toy`, divided among 3 clients",
        f"{run.arms[-1].num_rounds} rounds; Poisson sampling with probability",
        "Not audited",
        "a repeatable simulation",
    ):
        assert words in text
    assert "DIFFERENCE" not in text
    for summary in run.arms:
        for value in (summary.local, summary.neighbor):
            assert f"{value:.3f}" not in text
    headings = re.findall(r"^## (.*)", text, re.MULTILINE)
    assert headings == ["Data", "Method", "Privacy", "Audit", "Intended use", "Limits"]


def test_the_card_of_an_edited_or_audited_run_says_so(trained, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    said = records.read_json(copy / "privacy.json")
    said["arms"][-1]["audiences"]["public"]["epsilon"] = 0.1
    records.write_json(copy / "privacy.json", said)
    (copy / "audit").mkdir()
    one = {
        "audience": "public", "claimed": said["arms"][-1]["audiences"]["personal"],
        "mechanism": [{"epsilon_lower_bound": 1.25}], "canaries": [], "attacks": [],
    }  # fmt: skip
    records.write_json(copy / "audit" / "audit.json", {"budgets": [{"arm": "dp_fpl, epsilon 8", "audiences": [one]}]})
    text = (hp.export(copy, to="card", out=tmp_path / "card") / "README.md").read_text(encoding="utf-8")
    assert "**DIFFERENCE: " in text
    assert "| at least 1.25 |" in text


def test_the_card_of_a_file_alone_says_what_the_file_says(tmp_path):
    written(TOY["method"], tmp_path / "prompts")
    prompt = hp.load_prompt(tmp_path / "prompts")
    strange = dataclasses.replace(prompt.header, class_names=("<script>", "a|b", "*c*", "d", "e", "f"))
    prompt = dataclasses.replace(prompt, header=strange)
    text = (hp.export(prompt, to="card", out=tmp_path / "card") / "README.md").read_text(encoding="utf-8")
    assert prompt.privacy in text
    assert text.count("Not known from the prompt file alone.") == 2
    assert r"Classes: \<script\>, a|b, \*c\*, d, e, f." in text
    assert "A prompt that all clients share" in text


def test_no_name_in_a_prompt_file_becomes_a_program():
    evil = 'x" if __import__("os").system("true") else "x'
    for script, settings in [
        (scripts.transformers_script, {"model": evil}),
        (scripts.open_clip_script, {"architecture": evil}),
        (scripts.open_clip_script, {"architecture": "ViT-B-32", "pretrained": evil}),
    ]:
        with pytest.raises(ConfigError, match="no program is made from it"):
            script(settings)


def test_a_personal_prompts_folder_is_for_its_owner_and_may_be_named_by_a_link(tmp_path):
    written(TOY["method"], tmp_path / "prompts")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "file").touch()
    hp.export(tmp_path / "prompts", to="head", out=tmp_path / "link", client=1)
    assert (tmp_path / "empty").stat().st_mode & 0o077 == 0
    assert hp.load_prompt(tmp_path / "link").header.client_id == 1
    hp.export(tmp_path / "prompts", to="head", out=tmp_path / "public")
    assert (tmp_path / "public").stat().st_mode & 0o077
    with pytest.raises(ConfigError, match="is a file, and nothing is overwritten"):
        hp.export(tmp_path / "prompts", to="head", out=tmp_path / "file")
