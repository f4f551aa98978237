"""The pages that readers follow with their own images and prompts, followed literally."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from helpers import tiny_models
from helpers.runs import Silent
from hushprompt.cli import main as cli
from hushprompt.config import parse as configs
from hushprompt.federation.simulate import run
from hushprompt.prompts.prompt_model import PromptModel

PROMPTS = Path(__file__).parent.parent / "docs" / "prompt-files.md"
PAGE = Path(__file__).parent.parent / "docs" / "bring-your-own-images.md"
BENCHMARKS = Path(__file__).parent.parent / "docs" / "benchmarks.md"
FIGURES = Path(__file__).parent.parent / "results" / "benchmarks"


@pytest.mark.slow
def test_every_command_of_bring_your_own_images_works(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    blocks = re.findall(r"```(python|bash)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python", "bash", "bash", "bash", "python", "bash"]
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, str(PAGE), "exec"), {})
            continue
        for line in text.strip().splitlines():
            monkeypatch.setattr(sys, "argv", shlex.split(line))
            with pytest.raises(SystemExit) as stop:
                cli.main()
            assert not stop.value.code, (line, capsys.readouterr())
    assert len(list((tmp_path / "my_images").glob("*/*.png"))) == 240
    for name in ("my_images", "my_clients"):
        assert (tmp_path / "runs" / name / "summary.json").exists()
    assert "north hospital" in (tmp_path / "my_clients" / "partition.csv").read_text()


@pytest.mark.parametrize("library", ["open_clip", "transformers"])
def test_a_prompt_file_gives_the_same_classes_without_this_package(library, toy_values, tmp_path, monkeypatch, capsys):
    pytest.importorskip(library)
    code = re.findall(r"```python\n(.*?)```", PROMPTS.read_text(), re.DOTALL)[library == "transformers"]
    monkeypatch.chdir(tmp_path)
    if library == "open_clip":
        import open_clip
        from safetensors.torch import save_file

        (tmp_path / "models").mkdir()
        tiny_models.write_open_clip_configs(tmp_path / "models")
        open_clip.add_model_config(tmp_path / "models")
        save_file(tiny_models.open_clip_model("vit").state_dict(), tmp_path / "vit.safetensors")
        backbone = {"name": "open_clip", "architecture": "tiny-vit", "checkpoint": "vit.safetensors"}
        code = code.replace("ViT-B-16", "tiny-vit").replace('"openai"', '"vit.safetensors"')
    else:
        (tmp_path / "clip").mkdir()
        tiny_models.clip(tmp_path / "clip")
        backbone = {"name": "transformers", "model": "clip"}
        code = code.replace("openai/clip-vit-base-patch16", "clip")
    values = {**toy_values, "backbone": backbone, "partition": {"name": "disjoint_classes", "num_clients": 6}}
    values = {**values, "references": [], "runtime": {"cache_dir": "cache"}, "training": {"num_rounds": 1}}
    config = configs.parse(values)
    run(config, tmp_path, Silent())
    test = config.data.load().splits["test"]
    model = PromptModel(config.backbone.load(), config.data.load().class_names)
    context = load_file("prompts/client-003.safetensors")["context"]
    text = model.text_features(context)
    for index in (0, 5, 9):
        (image,) = test.read(np.array([index]))
        Image.fromarray(image).save("image.png")
        found = {}
        exec(compile(code, str(PROMPTS), "exec"), found)
        logits = model.logits(model.backbone.encode_images([image]), text)
        torch.testing.assert_close(found["probabilities"], logits.softmax(dim=-1), rtol=1e-3, atol=1e-5)
        assert "epsilon = " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_the_figures_of_the_benchmarks_page_are_the_measured_ones(monkeypatch, name):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent)
    from benchmarks.rows import Result, with_figures

    page = BENCHMARKS.read_text(encoding="utf-8")
    command = f"python -m benchmarks --out results/benchmarks/{name}.json --keep --docs"
    assert with_figures(page, name, Result.read(FIGURES / f"{name}.json")) == page, command


@pytest.mark.slow
def test_the_python_of_the_readme_runs_as_written(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (PAGE.parent.parent / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["run"].guarantees["public"].epsilon == pytest.approx(8, rel=0.02)
    assert names["prompt"].tensors["context"].shape[0] == 16
    assert "DP-FPL" in (tmp_path / "report.html").read_text(encoding="utf-8")
