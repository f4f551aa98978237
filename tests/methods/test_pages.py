"""The pages of methods: the index is made from the registry, and the sections that readers are told to write work."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

from hushprompt.config import parse as configs
from hushprompt.federation.planning import plan_arms
from hushprompt.registry import METHODS

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
BLOCKS = [
    (path.stem, block)
    for path in sorted([*DOCS.glob("methods/*.md"), DOCS / "optimizers.md"])
    for block in re.findall(r"```toml\n(.*?)```", path.read_text(), re.DOTALL)
]


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=[page for page, _ in BLOCKS])
def test_a_section_of_a_page_fits_the_embedded_preset(page, block):
    values = tomllib.loads(configs.locate(None).read_text())
    resolved = configs.parse({**values, "references": [], **tomllib.loads(block)})
    assert plan_arms(resolved, [400] * 10)[-1].plan.channels


def test_the_fedprox_of_the_page_can_be_run():
    settings = re.findall(r"--set\s+([\w.]+=[\w.]+)", (DOCS / "methods" / "promptfl.md").read_text())
    assert "training.local_steps=4" in settings
    method = ['method={name="promptfl"}', "references=[]"]
    resolved = configs.load(configs.locate(None), [*method, *settings])
    assert resolved.method.proximal_weight == 0.1
    assert plan_arms(resolved, [400] * 10)


def test_the_index_is_what_the_registry_has():
    spec = importlib.util.spec_from_file_location("methods_index", ROOT / "tools" / "methods_index.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.index() == (DOCS / "methods" / "README.md").read_text(encoding="utf-8"), "python tools/methods_index.py"


def test_every_page_is_of_a_method():
    pages = {path.stem.replace("-", "_") for path in DOCS.glob("methods/*.md")} - {"README"}
    assert pages <= set(METHODS.own_names())
