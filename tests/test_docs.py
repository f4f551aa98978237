"""The pages that readers follow with their own images and prompts, followed literally."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from hushprompt.cli import main as cli

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
