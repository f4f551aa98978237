"""The examples run, with a toy model and few rounds; users run them as they are."""

import importlib.util
import sys
from pathlib import Path

import pytest

from hushprompt.registry import METHODS

EXAMPLES = Path(__file__).parents[1] / "examples"
QUICK = {
    "backbone": "toy",
    "data": "toy",
    "partition": {"num_clients": 3},
    "sampling": {"sampling_prob": 0.5},
    "privacy": {"delta": 1e-3},
    "training": {"num_rounds": 2},
}


@pytest.fixture
def example(monkeypatch, tmp_path):
    """Import an example, in a folder and with registered methods of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def load(name):
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    yield load
    METHODS._classes.pop("averaged", None)


def test_the_preset(example, capsys):
    few = {"references": ["zero_shot"], "method": {"num_ctx": 4, "rank": 2}}
    run = example("01_preset").main(**QUICK, **few)
    assert run.is_finished
    assert (run.folder / "report.html").exists()
    printed = capsys.readouterr().out
    assert "personal: epsilon = 2 (simulation) at delta = 0.001" in " ".join(printed.split())
    assert "Prompt(" in printed


def test_own_images(example, tmp_path, capsys):
    module = example("02_own_images")
    module.write_drawings(tmp_path / "my_images", num_classes=3)
    few = {"training": {"num_rounds": 1}, "method": {"num_ctx": 2, "rank": 1}, "backbone": "toy"}
    run = module.main(tmp_path / "my_images", **few)
    assert [arm.method for arm in run.arms] == ["zero_shot", "dp_fpl"]
    assert "No guarantee" not in capsys.readouterr().out


def test_an_own_method(example):
    module = example("03_own_method")
    run = module.main(**QUICK)
    assert [arm.title for arm in run.arms] == ["PromptFL", "PromptFL, averaged"]
    assert isinstance(run.config.method, module.Averaged)
    assert run.guarantees["public"].epsilon <= 2
    assert run.prompt().tensors["context"].shape[0] == 16


def test_the_audit_notebook_runs_in_a_kernel(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for name in ("XDG_CACHE_HOME", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    notebook = nbformat.read(EXAMPLES / "04_audit.ipynb", as_version=4)
    (settings,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    config = {**QUICK, "method": {"num_ctx": 4, "rank": 2}}
    measure = {"num_shadows": 4, "num_canaries": 0, "num_gradient_canaries": 20, "workers": 1}
    settings.source = f"config, measure = {config!r}, {measure!r}"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("text/html" in output.get("data", {}) for output in outputs), "the run shows its table"
    text = "".join(output.get("text", "") for output in outputs)
    assert "claimed: epsilon = 2" in text
    assert "measured: epsilon >= " in text


def test_every_example_is_here_and_short():
    names = sorted(path.name for path in EXAMPLES.iterdir() if not path.name.startswith("_"))
    assert names == ["01_preset.py", "02_own_images.py", "03_own_method.py", "04_audit.ipynb"]
    assert all(len(path.read_text().splitlines()) < 100 for path in EXAMPLES.glob("*.py"))
