"""Panels, scales, axes, marks and labels of the figures, drawn by hand.

Every figure is made of panels 340 units wide, so that a panel fills a phone at the size it was drawn for, and several
stand side by side on a larger screen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from hushprompt.reporting.markup import join, num, tag
from hushprompt.reporting.series import Style

WIDTH = 340
FONT = 11
LETTER = 6.5
"""Width that a letter of a label takes in a wide font, on average."""


@dataclass(frozen=True)
class Scale:
    """Maps values to units along one axis."""

    low: float
    high: float
    start: float
    """Unit of `low`."""
    stop: float
    """Unit of `high`; below `start` on a vertical axis."""
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """Return the unit of a value; one outside stands on the edge."""
        inside = min(max(value, self.low), self.high)
        low, high, at = (math.log10(v) if self.is_log else v for v in (self.low, self.high, inside))
        return self.start + (at - low) / (high - low) * (self.stop - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Return round values inside: about `count` of them, on a log axis one, two and five times powers of ten."""
        if self.is_log:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            fine = [m * 10.0**e for e in exponents for m in (1, 2, 5) if self.low <= m * 10.0**e <= self.high]
            coarse = [tick for tick in fine if math.isclose(10 ** round(math.log10(tick)), tick)]
            return fine if len(fine) <= 2 * count or len(coarse) < 2 else coarse
        step = _round_step((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def padded(
    values: Sequence[float], *, least: float, low: float = -math.inf, high: float = math.inf
) -> tuple[float, float]:
    """Return a domain around the finite values, at least `least` wide, with a margin, inside [low, high].

    >>> padded([40.0, 60.0], least=10.0)
    (38.0, 62.0)
    """
    finite = [value for value in values if math.isfinite(value)]
    middle, half = (min(finite) + max(finite)) / 2, max((max(finite) - min(finite)) / 2 * 1.2, least / 2)
    return max(middle - half, low), min(middle + half, high)


def log_padded(values: Sequence[float]) -> tuple[float, float]:
    """Return a domain around positive values, for a log axis, with a margin of at least a third of a decade."""
    logs = [math.log10(value) for value in values]
    margin = max((max(logs) - min(logs)) / 6, 0.35)
    return 10 ** (min(logs) - margin), 10 ** (max(logs) + margin)


@dataclass(frozen=True)
class Frame:
    """The plotting area of a panel."""

    x: Scale
    y: Scale

    def axes(self, x_title: str, y_title: str, *, x_ticks: Sequence[float] | None = None) -> Markup:
        """Draw the grid, the ticks and the titles of both axes; the vertical one's stands above it."""
        left, right, bottom, top = self.x.start, self.x.stop, self.y.start, self.y.stop
        parts = []
        for tick in self.y.ticks():
            at = self.y(tick)
            parts.append(tag("line", x1=left, x2=right, y1=at, y2=at, class_="grid"))
            parts.append(text(left - 5, at + 4, f"{tick:g}", "end", class_="tick"))
        for tick in self.x.ticks() if x_ticks is None else x_ticks:
            at = self.x(tick)
            parts.append(tag("line", x1=at, x2=at, y1=top, y2=bottom, class_="grid"))
            parts.append(text(at, bottom + 15, f"{tick:g}", "middle", class_="tick"))
        parts.append(tag("path", d=f"M{num(left)} {num(top)}V{num(bottom)}H{num(right)}", class_="axis"))
        parts.append(text((left + right) / 2, bottom + 31, x_title, "middle", class_="axis-title"))
        parts.append(text(left - 24, top - 9, y_title, class_="axis-title"))
        return tag("g", *parts)


def frame(
    x: tuple[float, float], y: tuple[float, float], *, height: float, right: float = 12, is_log: bool = False
) -> Frame:
    """Return the plotting area of a panel of some height; `right` is the room for labels behind it."""
    return Frame(Scale(*x, 34, WIDTH - right, is_log), Scale(*y, height - 38, 44))


def panel(slug: str, title: str, description: str, height: float, *children: str) -> Markup:
    """Return one panel as an SVG of its own: an image with a name and a description."""
    return tag(
        "svg",
        tag("title", title, id=f"{slug}-title"),
        tag("desc", description, id=f"{slug}-desc"),
        text(10, 16, fitted(title[:1].upper() + title[1:], WIDTH - 16, letter=7.9), class_="panel-title"),
        *children,
        xmlns="http://www.w3.org/2000/svg",
        id=slug,
        class_="panel",
        role="img",
        aria_labelledby=f"{slug}-title {slug}-desc",
        viewBox=f"0 0 {WIDTH} {num(height)}",
    )


def text(x: float, y: float, what: str, anchor: str | None = None, class_: str | None = None) -> Markup:
    """Write a line of text."""
    return tag("text", what, x=x, y=y, text_anchor=anchor, class_=class_)


def color_class(style: Style) -> str:
    """Name the class that sets a series' color."""
    return "ref" if style.color is None else f"s{style.color}"


SHAPES = (
    "M-5 0A5 5 0 1 0 5 0A5 5 0 1 0 -5 0Z",  # circle
    "M-4.5-4.5H4.5V4.5H-4.5Z",  # square
    "M0-6L5.6 4H-5.6Z",  # triangle
    "M0-6.2L6.2 0L0 6.2L-6.2 0Z",  # diamond
    "M0 6L5.6-4H-5.6Z",  # triangle on its tip
    "M-1.8-5.5H1.8V-1.8H5.5V1.8H1.8V5.5H-1.8V1.8H-5.5V-1.8H-1.8Z",  # plus
    "M-5.6-3L-3-5.6L0-2.6L3-5.6L5.6-3L2.6 0L5.6 3L3 5.6L0 2.6L-3 5.6L-5.6 3L-2.6 0Z",  # cross
    "M0-6.3L1.7-2L6.2-1.9L2.7 1L3.9 5.4L0 2.9L-3.9 5.4L-2.7 1L-6.2-1.9L-1.7-2Z",  # star
)


def mark(style: Style, x: float, y: float, tip: str, *, size: float = 1.0, class_: str = "mark") -> Markup:
    """Draw a series' mark at a point, with a text that shows when it is pointed at."""
    hollow = " hollow" if style.is_hollow else ""
    return tag(
        "path",
        *([tag("title", tip)] if tip else []),
        d=SHAPES[style.shape % len(SHAPES)],
        transform=f"translate({num(x)} {num(y)})" + (f" scale({num(size)})" if size != 1 else ""),
        class_=f"{class_}{hollow} {color_class(style)}",
    )


def polyline(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    """Join points by a line."""
    path = "L".join(f"{num(x)} {num(y)}" for x, y in points)
    return tag("path", d=f"M{path}", class_=class_)


def line_class(style: Style) -> str:
    """Name the classes of a series' line."""
    return f"line d{style.dash} {color_class(style)}"


def whisker(x: float, low: float, high: float, style: Style) -> Markup:
    """Draw a vertical bar from `low` to `high`, in units."""
    lines = f"M{num(x - 3)} {num(low)}h6M{num(x)} {num(low)}V{num(high)}M{num(x - 3)} {num(high)}h6"
    return tag("path", d=lines, class_=f"whisker {color_class(style)}")


def end_labels(entries: Sequence[tuple[str, float, Style]], x: float, low: float, high: float) -> Markup:
    """Write names at the right ends of lines, moved apart so that none covers another.

    Args:
        entries: name, unit of the line's end, and style.
        x: where the names begin.
        low: upper edge of the room, in units.
        high: lower edge.
    """
    ordered = sorted(entries, key=lambda entry: entry[1])
    heights = spread_out([y for _, y, _ in ordered], low, high, gap=FONT + 1)
    parts = []
    for (name, y, style), at in zip(ordered, heights, strict=True):
        if abs(at - y) > 2:
            parts.append(polyline([(x - 8, y), (x - 1, at)], "leader"))
        parts.append(text(x + 2, at + 4, fitted(name, WIDTH - x - 2), class_=f"label {color_class(style)}"))
    return join(parts)


def spread_out(positions: Sequence[float], low: float, high: float, gap: float) -> list[float]:
    """Move sorted positions as little as it takes to be `gap` apart, inside [low, high] if there is room.

    >>> spread_out([10.0, 11.0, 40.0], 0.0, 100.0, 12.0)
    [4.5, 16.5, 40.0]
    """
    blocks: list[list[float]] = []  # each: sum of wanted starts, number of labels
    for position in positions:
        blocks.append([position, 1.0])
        while len(blocks) > 1 and _start(blocks[-1], gap) < _start(blocks[-2], gap) + blocks[-2][1] * gap:
            total, count = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + count]
    starts = [_start(block, gap) for block in blocks]
    for index in range(len(blocks)):
        edge = low if index == 0 else starts[index - 1] + blocks[index - 1][1] * gap
        starts[index] = max(starts[index], edge)
    for index in reversed(range(len(blocks))):
        edge = high + gap if index == len(blocks) - 1 else starts[index + 1]
        starts[index] = min(starts[index], edge - blocks[index][1] * gap)
    return [start + place * gap for start, block in zip(starts, blocks, strict=True) for place in range(int(block[1]))]


def _start(block: Sequence[float], gap: float) -> float:
    """First position of a block of labels that stands where its members want to be on average."""
    total, count = block
    return total / count - (count - 1) * gap / 2


def place_labels(points: Sequence[tuple[str, float, float, Style]], box: tuple[float, float, float, float]) -> Markup:
    """Write names beside points, where they cover the least of other names and marks.

    Args:
        points: name, x, y and style.
        box: left, top, right and bottom of the room.
    """
    taken = [(x - 6, y - 6, x + 6, y + 6) for _, x, y, _ in points]
    parts = []
    for name, x, y, style in points:
        width = LETTER * len(name)
        sides = [(left, drop) for left in (x + 9, x - 9 - width) for drop in (0, -9, 9, -18, 18, -28, 28)]
        above_and_below = [(x - width / 2, -14), (x - width / 2, 14)]
        choices = [(left, y - 5 + drop, left + width, y + 6 + drop) for left, drop in sides + above_and_below]
        costs = [sum(_overlap(choice, other) for other in taken) + 4 * _outside(choice, box) for choice in choices]
        best = choices[costs.index(min(costs))]
        taken.append(best)
        parts.append(text(best[0], best[3] - 2, name, class_=f"label {color_class(style)}"))
    return join(parts)


def fitted(name: str, room: float, letter: float = LETTER) -> str:
    """Cut a name to the room, with an ellipsis.

    >>> fitted("untrained random context", 60)
    'untraine…'
    """
    letters = max(int(room / letter), 2)
    return name if len(name) <= letters else name[: letters - 1].rstrip(" ,") + "…"


Box = tuple[float, float, float, float]


def _overlap(a: Box, b: Box) -> float:
    """Area that two boxes share."""
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


def _outside(a: Box, room: Box) -> float:
    """Area of a box outside a room."""
    return (a[2] - a[0]) * (a[3] - a[1]) - _overlap(a, room)


def _round_step(raw: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that is not below `raw`."""
    power: float = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
