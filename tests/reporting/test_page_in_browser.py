"""The page in a real browser: nothing complains, nothing is cut off, nothing runs out of the screen."""

import json
import shutil
from pathlib import Path

import pytest

from helpers import browser
from hushprompt.reporting.page import report

pytestmark = pytest.mark.skipif(
    browser.executable() is None,
    reason="no Chromium on the PATH and none named by HUSHPROMPT_BROWSER; get one with: apt-get install chromium",
)
AUDIT = Path(__file__).parents[2] / "results" / "embedded" / "audit" / "audit.json"
VIEWS = {
    "phone": {"width": 360},
    "larger phone": {"width": 390},
    "phone, dark": {"width": 360, "scheme": "dark"},
    "tablet": {"width": 768},
    "desktop": {"width": 1280},
    "desktop, dark": {"width": 1280, "scheme": "dark"},
    "print": {"width": 720, "medium": "print"},
}
LONG = "a class with a very long name and <b>markup</b> & 'quotes' in it"
CUT_OFF = """
[...document.querySelectorAll("svg.panel")].flatMap(svg => {
  const room = svg.viewBox.baseVal;
  return [...svg.querySelectorAll("text")].filter(t => t.checkVisibility()).map(t => {
    const from = svg.getScreenCTM().inverse(), box = t.getBoundingClientRect();
    const a = new DOMPoint(box.left, box.top).matrixTransform(from);
    const b = new DOMPoint(box.right, box.bottom).matrixTransform(from);
    return [svg.id, t.textContent, a.x, a.y, b.x, b.y];
  }).filter(([id, text, left, top, right, bottom]) =>
    left < -1 || top < -1 || right > room.width + 1 || bottom > room.height + 1);
})
"""
EMPTY = """
[...document.querySelectorAll("svg.panel")].filter(svg => !svg.closest("details") &&
  (svg.getBoundingClientRect().width < 200 || svg.getBoundingClientRect().height < 30)).map(svg => svg.id)
"""
CUT_TABLES = """
[...document.querySelectorAll("table")].filter(table =>
  table.parentElement.scrollWidth > table.parentElement.clientWidth + 1).map(table => table.caption.textContent)
"""
CONTRAST = """
(() => {
  const light = color => color.match(/[0-9.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = light(getComputedStyle(document.querySelector("section")).backgroundColor);
  return [...document.querySelectorAll("svg.panel text, p, td, th, figcaption, summary, li, dd, dt")].map(e => {
    const style = getComputedStyle(e), ink = light(e.namespaceURI.endsWith("svg") ? style.fill : style.color);
    const [dark, bright] = [ink, behind].sort((a, b) => a - b);
    return [e.textContent.slice(0, 40), (bright + 0.05) / (dark + 0.05)];
  }).filter(([text, ratio]) => ratio < 4.5).slice(0, 5);
})()
"""


@pytest.fixture(scope="module")
def page(finished, tmp_path_factory):
    """The page of two runs, one of which was audited and has hard names, in a file."""
    runs = tmp_path_factory.mktemp("runs") / "runs"
    finished = shutil.copytree(finished, runs)
    (finished / "seed-1" / "audit").mkdir()
    shutil.copy(AUDIT, finished / "seed-1" / "audit" / "audit.json")
    path = tmp_path_factory.mktemp("page") / "report.html"
    summary = finished / "seed-1" / "partition.json"
    values = json.loads(summary.read_text())
    values["class_names"] = [f"{LONG} {index}" for index in range(len(values["class_names"]))]
    summary.write_text(json.dumps(values))
    path.write_text(report([finished], "A title that is long enough to need more than one line on a telephone"))
    return path


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    """An open browser."""
    with browser.opened(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_the_page_is_whole_on_every_screen(page, tab, view):
    tab.complaints.clear()
    tab.requests.clear()
    tab.show(page, **view)
    assert tab.complaints == []
    assert tab.requests == [page.resolve().as_uri()]
    assert tab.ask("document.documentElement.scrollWidth") <= view["width"]
    assert tab.ask("document.querySelectorAll('svg.panel').length") >= 12
    assert tab.ask(EMPTY) == []
    assert tab.ask(CUT_OFF) == []
    assert tab.ask(CONTRAST) == []


@pytest.mark.parametrize("width", [360, 390, 1280])
def test_what_is_folded_up_opens_and_still_fits_the_screen(page, tab, width):
    tab.show(page, width)
    tab.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert tab.ask("document.documentElement.scrollWidth") <= width
    assert tab.ask(CUT_OFF) == []
    assert "What attacks found" in tab.ask("document.body.textContent")
    assert tab.ask(CUT_TABLES) == []


def test_dark_is_dark_and_print_is_white(page, tab):
    ground = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    tab.show(page, 800, scheme="dark")
    assert max(tab.ask(ground)) < 60
    tab.show(page, 800)
    assert min(tab.ask(ground)) > 200
    tab.show(page, 800, scheme="dark", medium="print")
    assert tab.ask(ground) == [255, 255, 255]


def test_it_prints(page, tab, tmp_path):
    tab.show(page, 800)
    tab.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
