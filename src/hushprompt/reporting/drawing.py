"""From a function that draws on matplotlib's axes to an SVG in the page, or to a file for a paper.

A figure is made of panels of one width, so that a panel fills a phone at the size it was drawn for, and several stand
side by side on a larger screen. Equal panels give equal bytes.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import textwrap
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from hushprompt import files
from hushprompt.errors import ConfigError
from hushprompt.reporting.styles import COLORS, GRAY, Style, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 340
"""Units of a panel; a unit is a pixel on the page and a point in a PDF."""
LETTERS = 66
"""Of a note, in the width of a panel."""
INK, SOFT, GRID, RULE, CARD, SHADE = "#1c1f24", "#5a616b", "#e9e7e1", "#dcdad3", "#ffffff", "#14366b"
VARIABLES = {
    **{color: f"--c{index}" for index, color in enumerate(COLORS)},
    GRAY: "--ref", INK: "--ink", SOFT: "--soft", GRID: "--grid", RULE: "--rule", CARD: "--card", SHADE: "--shade",
}  # fmt: skip
"""Names in page.css of the colors of figures, which are others in dark mode."""
LOOK: dict[Any, Any] = {
    "font.family": "sans-serif", "font.size": 11, "axes.titlesize": 12.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.titley": 1.0, "axes.titlecolor": INK, "axes.labelsize": 11,
    "axes.labelcolor": SOFT, "axes.edgecolor": SOFT, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 1, "text.color": INK,
    "text.parse_math": False, "xtick.color": SOFT, "ytick.color": SOFT, "xtick.labelsize": 11, "ytick.labelsize": 11,
    "lines.linewidth": 2, "lines.markersize": 8, "legend.frameon": False, "svg.fonttype": "none",
    "pdf.fonttype": 42, "figure.facecolor": "none", "axes.facecolor": "none", "savefig.dpi": 288,
}  # fmt: skip
SUFFIXES = (".pdf", ".png", ".svg")
SVG = "http://www.w3.org/2000/svg"
TIP = "tip:"
"""How an artist's id begins that is a text to show when it is pointed at."""

Margins = tuple[float, float, float, float]
"""Room on the left, above, on the right and below, in units."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes."""

    slug: str
    """Unique on a page."""
    title: str
    description: str
    """What it shows, in words and numbers, for who cannot see it."""
    draw: Callable[[Axes], None]
    height: float = 270
    margins: Margins = (40, 30, 12, 42)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure: panels, and what stands below them."""

    slug: str
    panels: Sequence[Panel]
    caption: str
    """What is drawn, and nothing that is not; a file has none."""
    note: str = ""
    """A sentence that stands in a file as well, such as whose epsilon is that of a simulation."""
    legend: Sequence[tuple[str, Style]] = ()


def tip(text: str) -> str:
    """Return the id of an artist that shows a text when it is pointed at, on the page."""
    return f"{TIP}{text}"


def embedded(panel: Panel) -> Markup:
    """Return a panel as an SVG for the page: named, described, and in the page's colors."""
    with _drawn_with(panel.slug):
        figure = _figure(WIDTH, panel.height)
        _place(figure, panel, 0, 0)
        text = _svg_text(figure)
    root = ET.fromstring(printable(text))
    _clean(root)
    ids = [f"{panel.slug}-title", f"{panel.slug}-desc"]
    for at, (name, words) in enumerate((("title", panel.title), ("desc", panel.description))):
        element = ET.Element(f"{{{SVG}}}{name}", {"id": ids[at]})
        element.text = printable(words)
        root.insert(at, element)
    root.attrib |= {"id": panel.slug, "class": "panel", "role": "img", "aria-labelledby": " ".join(ids)}
    return _markup(root)


def sample(style: Style, slug: str) -> Markup:
    """Return a mark on its line, in the size of a letter, for legends and tables."""
    with _drawn_with(slug):
        figure = _figure(34, 16)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(0, 34), ylim=(0, 16))
        axes.plot([2, 17, 32], [8, 8, 8], markevery=[1], **line(style))
        text = _svg_text(figure)
    root = ET.fromstring(text)
    _clean(root)
    root.attrib |= {"id": slug, "class": "sample", "aria-hidden": "true"}
    return _markup(root)


def line(style: Style) -> dict[str, Any]:
    """Return how a group's line and mark are drawn, as keywords of `Axes.plot`."""
    return {
        "color": style.color, "linestyle": style.dash, "marker": style.marker,
        "markerfacecolor": CARD if style.is_hollow else style.color,
        "markeredgecolor": style.color if style.is_hollow else CARD,
        "markeredgewidth": 1.6 if style.is_hollow else 0.6,
    }  # fmt: skip


def save(drawing: Drawing, path: Path) -> None:
    """Write a figure for a paper: its panels in rows of up to three, a legend and the note below.

    Raises:
        ConfigError: the ending of the file is not one of SUFFIXES.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"A figure is written to a file that ends in {', '.join(SUFFIXES)}, got {path.name!r}.")
    panels = drawing.panels
    columns = 2 if len(panels) in (2, 4) else min(len(panels), 3)
    heights = [max(p.height for p in panels[at : at + columns]) for at in range(0, len(panels), columns)]
    per_row = columns * 2 if len(drawing.legend) > 2 else 2
    notes = textwrap.wrap(printable(drawing.note), LETTERS * columns)
    under = 14 * len(notes) + 6 if notes else 0
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
    with _drawn_with(drawing.slug):
        legend, keys = _fitting(drawing.legend, WIDTH * columns, per_row) if drawing.legend else ({}, 0)
        figure = _figure(WIDTH * columns, height := sum(heights) + keys + under)
        for at, panel in enumerate(panels):
            _place(figure, panel, WIDTH * (at % columns), sum(heights[: at // columns]))
        if drawing.legend:
            figure.legend(**legend, bbox_to_anchor=(0.5, under / height))
        if notes:
            figure.text(0.5, 5 / height, "\n".join(notes), ha="center", va="bottom", fontsize=9, color=SOFT)
        for artist in figure.findobj():
            artist.set_gid(None)  # what shows when it is pointed at is for the page
        content = io.BytesIO()
        figure.savefig(content, format=path.suffix[1:], facecolor="white", metadata=metadata)
    files.write_bytes(path, content.getvalue())


@contextlib.contextmanager
def _drawn_with(salt: str) -> Iterator[None]:
    """Draw in the look of the figures, with ids that depend on `salt` and on what is drawn alone."""
    import matplotlib as mpl

    with mpl.rc_context({**LOOK, "svg.hashsalt": salt}), warnings.catch_warnings():
        # The reader's own fonts draw the text of an SVG; those that only measure it may lack a letter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _figure(width: float, height: float) -> Figure:
    """Return an empty figure whose unit is a point."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), dpi=72)


def _place(figure: Figure, panel: Panel, left: float, top: float) -> None:
    """Draw a panel into a figure, with its upper left corner at (left, top)."""
    width, height = figure.get_size_inches() * 72
    before, above, behind, below = panel.margins
    size = ((WIDTH - before - behind) / width, (panel.height - above - below) / height)
    axes = figure.add_axes(((left + before) / width, 1 - (top + panel.height - below) / height, *size))
    panel.draw(axes)
    title = printable(panel.title)
    size_of_title = min(12.5, 1.45 * WIDTH / len(title))  # a long one still fits
    axes.set_title(title, x=-(before - 8) / (WIDTH - before - behind), pad=above - 21, fontsize=size_of_title)


def _fitting(legend: Sequence[tuple[str, Style]], width: float, per_row: int) -> tuple[dict[str, Any], int]:
    """Return what a legend that is no wider than `width` is drawn with, and its height, both in units.

    It has fewer than `per_row` names side by side if they are long, and breaks a name that is too long alone.
    """
    figure = _figure(width, width)
    whole = max(len(name) for name, _ in legend)
    tried = [*((columns, whole) for columns in range(per_row, 0, -1)), *((1, n) for n in range(whole - 1, 9, -1))]
    for columns, letters in tried:
        keys = {"handles": _handles(legend, letters), "ncols": columns, "fontsize": 10, "loc": "lower center"}
        extent = figure.legend(**keys).get_window_extent()
        if extent.width <= width:
            break
    return keys, math.ceil(extent.height)


def _handles(legend: Sequence[tuple[str, Style]], letters: int) -> list[Any]:
    """Return a line for each entry of a legend, whose name has so many letters in a line."""
    from matplotlib.lines import Line2D

    return [Line2D([], [], label=textwrap.fill(printable(name), letters), **line(style)) for name, style in legend]


def _svg_text(figure: Figure) -> str:
    content = io.StringIO()
    figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    return content.getvalue()


def _clean(root: ET.Element) -> None:
    """Make an SVG of matplotlib a part of a page: no ids but those that are used, no fixed font, size or color."""
    written = ET.tostring(root, encoding="unicode")
    used = set(re.findall(r"#([\w-]+)", written))
    for parent in list(root.iter()):
        for child in list(parent):
            # The style sheet would hold for the whole page, and the metadata names addresses.
            if child.tag.endswith("}metadata") or child.tag.endswith("}style"):
                parent.remove(child)
    for element in root.iter():
        name = element.get("id", "")
        if name.startswith(TIP):
            title = ET.Element(f"{{{SVG}}}title")
            title.text = name.removeprefix(TIP)
            element.insert(0, title)
        if name not in used:
            element.attrib.pop("id", None)
        _shorten(element)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)


def _shorten(element: ET.Element) -> None:
    """Write an element's attributes for the page, and leave out what says nothing."""
    for key, value in list(element.attrib.items()):
        if key.endswith("}href"):
            element.set("href", element.attrib.pop(key))
        elif key == "style":
            element.set("style", _in_page_colors(value))
        elif key in ("d", "x", "y", "transform"):
            short = re.sub(r"(\.\d\d)\d+", r"\1", " ".join(value.split()))
            element.set(key, short.removesuffix(" "))
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    for child in element:
        child.tail = None
    if not (element.text or "").strip():
        element.text = None


def _in_page_colors(style: str) -> str:
    """Write a style with the page's font and with its variables for colors.

    >>> _in_page_colors("font: 11px 'DejaVu Sans', sans-serif; fill: #1c1f24")
    'font-size: 11px; fill: var(--ink)'
    """
    style = re.sub(r"font: ((?:\w+ )*)([\d.]+px)[^;]*", r"font-size: \2", style)
    style = re.sub(r"font-family: [^;]*(; )?", "", style)
    return re.sub(
        r"#[0-9a-f]{6}", lambda found: f"var({VARIABLES[found[0]]})" if found[0] in VARIABLES else found[0], style
    )


def _markup(root: ET.Element) -> Markup:
    ET.register_namespace("", SVG)
    return Markup(ET.tostring(root, encoding="unicode"))
