"""The pages that are made from the code say what the code says."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "tools" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["api.md", "settings.md", "methods/README.md"])
def test_a_page_that_is_made_from_the_code_is_in_step_with_it(reference, page):
    kept = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert reference.PAGES[page]() == kept, "run python tools/reference.py"


def test_every_setting_says_what_it_means(reference):
    for line in reference.settings_page().splitlines():
        if line.startswith("| `"):
            assert line.removesuffix("|").rpartition("|")[2].strip(), line
