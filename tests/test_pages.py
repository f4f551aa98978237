"""The shape of the pages: length of lines, links, and files that they name."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    page
    for page in sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/**/README.md")})
    if not {".venv", "node_modules", ".pytest_cache"} & set(page.relative_to(ROOT).parts)
]


def prose(page):
    """The lines of a page that are neither code nor table nor figures."""
    text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!-- benchmarks: .*?<!-- end of benchmarks -->", "", text, flags=re.DOTALL)
    return [
        line for line in text.splitlines() if not line.startswith("    ") and line.lstrip()[:1] not in ("|", "<", "!")
    ]


def test_the_readme_fits_one_page_and_begins_with_what_a_newcomer_needs():
    page = ROOT / "README.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    assert len(" ".join(prose(page)).split()) <= 1200
    first_screen = "\n".join(lines[:50])
    for needed in ("hushprompt run", "pytest", "import hushprompt as hp", "| DP-FPL |"):
        assert needed in first_screen
    assert "(docs/glossary.md)" in page.read_text(encoding="utf-8")


def test_the_fast_path_is_told_in_1500_words():
    assert len((ROOT / "docs" / "fast-path.md").read_text(encoding="utf-8").split()) < 1500


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_keeps_to_100_characters_a_line(page):
    long = [line for line in prose(page) if len(line) > 100]
    assert not [line for line in long if len(re.sub(r"`[^`]*`", "", line).split()) > 1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_pages_name_exist(page):
    homes = [ROOT, ROOT / "src", ROOT / "src" / "hushprompt", ROOT / "tests", page.parent]
    for path in re.findall(r"`([a-z_0-9/]+/[a-z_0-9]+\.py)`", page.read_text(encoding="utf-8")):
        if page.name == "CHANGELOG.md" or "my_" in path:
            continue
        assert any((home / path).exists() for home in homes), path
