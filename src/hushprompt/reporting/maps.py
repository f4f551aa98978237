"""The figures about clients and classes: scores of each client, who holds which class, and what is taken for what."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from hushprompt.reporting.confusions import Confusions
from hushprompt.reporting.figures import NAMES
from hushprompt.reporting.markup import num, tag
from hushprompt.reporting.runs import Holdings
from hushprompt.reporting.series import Series, mean
from hushprompt.reporting.svg import WIDTH, Scale, color_class, fitted, mark, padded, panel, text

NUM_SHADES = 6
MAX_DOTS = 400
"""Above so many clients and seeds, dots become one blot; the box and its whiskers stay."""
MAX_NAMES = 25
"""More classes or clients than this cannot be named along an axis of 340 units."""


def client_spread(series: Sequence[Series]) -> list[Markup]:
    """Draw every client's accuracy, a line a row of the table: dots, quartiles, median."""
    drawn = [s for s in series if any(m.result.clients for m in s.members)]
    panels = []
    for score in ("local", "neighbor"):
        values = {s.name: _client_values(s, score) for s in drawn}
        if any(values.values()):
            panels.append(_spread_panel(score, [s for s in drawn if values[s.name]], values))
    return panels


def _client_values(s: Series, score: str) -> list[tuple[float, str]]:
    """Return accuracy in percent and whose it is, for every client and seed."""
    return [
        (100 * client[score], f"client {client_id}, seed {member.run.seed}")
        for member in s.members
        for client_id, client in enumerate(member.result.clients)
        if math.isfinite(client[score])
    ]


def _spread_panel(score: str, drawn: Sequence[Series], values: dict[str, list[tuple[float, str]]]) -> Markup:
    """Draw one score of all clients."""
    step, top = 40, 34
    height = top + step * len(drawn) + 34
    everything = [value for s in drawn for value, _ in values[s.name]]
    x = Scale(*padded(everything, least=10, low=0, high=100), 16, WIDTH - 14)
    bottom = height - 34.0
    parts = []
    for tick in x.ticks():
        parts.append(tag("line", x1=x(tick), x2=x(tick), y1=top, y2=bottom, class_="grid"))
        parts.append(text(x(tick), bottom + 15, f"{tick:g}", "middle", class_="tick"))
    parts.append(text(WIDTH / 2, bottom + 30, f"{NAMES[score]} of a client, %", "middle", class_="axis-title"))
    described = []
    for index, s in enumerate(drawn):
        y = top + step * index + 26
        found = [value for value, _ in values[s.name]]
        low, lower, median, upper, high = (float(np.quantile(found, q)) for q in (0, 0.25, 0.5, 0.75, 1))
        parts.append(text(x.start, y - 13, fitted(s.name, WIDTH - 90), class_=f"label {color_class(s.style)}"))
        parts.append(text(x.stop, y - 13, f"median {median:.1f}", "end", class_="tick"))
        parts.append(tag("line", x1=x(low), x2=x(high), y1=y, y2=y, class_=f"whisker {color_class(s.style)}"))
        width = max(x(upper) - x(lower), 1)
        parts.append(
            tag("rect", x=x(lower), y=y - 7, width=width, height=14, rx=3, class_=f"box {color_class(s.style)}")
        )
        if len(found) <= MAX_DOTS:
            for place, (value, whose) in enumerate(values[s.name]):
                tip = f"{s.name}, {whose}: {value:.1f}"
                parts.append(mark(s.style, x(value), y + (place * 7 % 13 - 6) * 0.7, tip, size=0.42, class_="mark dot"))
        parts.append(tag("line", x1=x(median), x2=x(median), y1=y - 9, y2=y + 9, class_="median"))
        described.append(f"{s.name}: from {low:.1f} to {high:.1f}, median {median:.1f}")
    title = f"{NAMES[score]}, client by client"
    return panel(f"clients-{score}", title, f"In percent. {'; '.join(described)}.", height, *parts)


def by_owner(holdings: Holdings) -> np.ndarray:
    """Return the classes that somebody holds, in the order of the client that holds most of each."""
    held = np.flatnonzero(holdings.train.sum(axis=0))
    return held[np.argsort(holdings.train[:, held].argmax(axis=0), kind="stable")]


def holdings_map(holdings: Holdings) -> list[Markup]:
    """Draw clients by classes: the darker, the more training examples of the class a client has."""
    order = by_owner(holdings)
    table = holdings.train[:, order]
    num_clients, num_classes = table.shape
    left, top = 40.0, 46.0
    width = WIDTH - left - 12
    cell = min(max(220 / num_clients, 1.2), 16.0)
    bottom = top + cell * num_clients
    parts = [_shaded(table / max(table.max(), 1), left, top, width / num_classes, cell)]
    every = math.ceil(12 / cell)
    for client, name in enumerate(holdings.client_names):
        row = holdings.train[client]
        largest = holdings.class_names[int(row.argmax())]
        tip = f"{name}: {row.sum()} training examples of {int((row > 0).sum())} classes, most of {largest}"
        y = top + cell * client
        parts.append(tag("rect", tag("title", tip), x=left, y=y, width=width, height=cell, class_="hover"))
        if client % every == 0:
            parts.append(text(left - 5, y + cell / 2 + 4, str(client), "end", class_="tick"))
    parts.append(_outline(left, top, width, bottom - top))
    parts.append(text(left - 24, top - 6, "client", class_="axis-title"))
    parts.append(_class_axis([holdings.class_names[i] for i in order], left, bottom, width))
    height = bottom + _axis_height(num_classes)
    parts.append(_shade_key(left, height - 12, _thresholds(int(table.max())), "examples"))
    description = (
        f"{num_clients} clients, {num_classes} classes, {int(table.sum())} training examples; "
        f"a client has examples of {mean((table > 0).sum(axis=1).tolist()):.1f} classes on average."
    )
    return [panel("holdings", "Training examples by client and class", description, height, *parts)]


def confusion_map(slug: str, title: str, table: np.ndarray, confusions: Confusions) -> Markup:
    """Draw true by predicted class, each row as shares of the true class's images; lines part the clients' classes."""
    order = confusions.order()
    shares = table[np.ix_(order, order)] / np.maximum(table[order].sum(axis=1, keepdims=True), 1)
    left, top = 40.0, 50.0
    width = WIDTH - left - 12
    cell, bottom = width / len(order), top + width
    parts = [_shaded(shares, left, top, cell, cell)]
    whose = ""
    if confusions.has_one_partition:
        parts.extend(_borders(confusions.owners[0][order], left, top, width))
        whose = ", by its client"
    parts.append(_outline(left, top, width, width))
    parts.append(text(left, top - 17, f"predicted class{whose}", class_="axis-title"))
    turned = f"translate(12 {num(top + width / 2)}) rotate(-90)"
    parts.append(tag("text", f"true class{whose}", class_="axis-title", text_anchor="middle", transform=turned))
    parts.append(_shade_key(left, bottom + 24, [3, 11, 25, 44, 69, 100], "% of a row"))
    together = "by the client that holds them" if whose else "with those that they are taken for"
    description = (
        f"{int(np.trace(table))} of {int(table.sum())} predictions are right. Classes stand together {together}."
    )
    return panel(slug, title, description, bottom + 38, *parts)


def _borders(owners: np.ndarray, left: float, top: float, width: float) -> list[Markup]:
    """Draw lines between the classes of different clients, and name the clients where there is room."""
    starts = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist()]
    if len(starts) == len(owners):
        return []
    cell = width / len(owners)
    parts = []
    for start, stop in zip(starts, [*starts[1:], len(owners)], strict=True):
        at = cell * start
        if start:
            lines = f"M{num(left + at)} {num(top)}v{num(width)}M{num(left)} {num(top + at)}h{num(width)}"
            parts.append(tag("path", d=lines, class_="part"))
        if cell * (stop - start) >= 14:
            middle = cell * (start + stop) / 2
            parts.append(text(left + middle, top - 4, str(owners[start]), "middle", class_="tick"))
            parts.append(text(left - 5, top + middle + 4, str(owners[start]), "end", class_="tick"))
    return parts


def _shaded(shares: np.ndarray, left: float, top: float, width: float, height: float) -> Markup:
    """Draw a table of shares [n, m] in [0, 1]: one path a shade, cells of one shade in a row joined; 0 is not drawn."""
    levels = np.ceil(np.sqrt(shares) * NUM_SHADES).astype(int)  # the root makes small shares visible
    paths = []
    for level in range(1, NUM_SHADES + 1):
        strokes: list[str] = []
        for row, cells in enumerate(levels == level):
            edges = np.flatnonzero(np.diff(np.concatenate(([0], cells.astype(int), [0]))))
            strokes.extend(f"M{start} {row}.5h{stop - start}" for start, stop in edges.reshape(-1, 2))
        if strokes:
            paths.append(tag("path", d="".join(strokes), class_=f"shade h{level}"))
    return tag("g", *paths, transform=f"translate({num(left)} {num(top)}) scale({width:.5f} {height:.5f})")


def _thresholds(most: int) -> list[int]:
    """Return the largest count of every shade; 0 for a shade that no count has."""
    return [most * level**2 // NUM_SHADES**2 for level in range(1, NUM_SHADES + 1)]


def _class_axis(names: Sequence[str], left: float, bottom: float, width: float) -> Markup:
    """Name the classes below a map, or say how many there are."""
    if len(names) > MAX_NAMES:
        what = f"{len(names)} classes, in order of their largest holder"
        return text(left + width / 2, bottom + 15, what, "middle", class_="tick")
    cell = width / len(names)
    labels = []
    for index, name in enumerate(names):
        turned = f"translate({num(left + cell * (index + 0.5) + 3)} {num(bottom + 10)}) rotate(-50)"
        labels.append(tag("text", fitted(name, 70), class_="tick", text_anchor="end", transform=turned))
    return tag("g", *labels)


def _axis_height(num_classes: int) -> float:
    """Return the room below a map."""
    return 44.0 if num_classes > MAX_NAMES else 94.0


def _outline(left: float, top: float, width: float, height: float) -> Markup:
    """Draw the edge of a map."""
    return tag("rect", x=left, y=top, width=width, height=height, class_="outline")


def _shade_key(x: float, y: float, thresholds: Sequence[int], unit: str) -> Markup:
    """Show every shade that is used, and say up to which value."""
    used = [(level + 1, most) for level, most in enumerate(thresholds) if most > 0]
    cells = [
        tag("path", d=f"M{num(x + 12 * place)} {num(y)}h12", class_=f"shade key h{level}")
        for place, (level, _) in enumerate(used)
    ]
    words = f"up to {', '.join(str(most) for _, most in used)} {unit}"
    return tag("g", *cells, text(x + 12 * len(used) + 6, y + 4, words, class_="tick"))
