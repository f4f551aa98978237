"""Local against neighbor accuracy, with curves of equal harmonic mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from hushprompt.reporting.figures import MAX_LABELS
from hushprompt.reporting.markup import tag
from hushprompt.reporting.series import Series, families, lowest_drawn, mean, with_spread
from hushprompt.reporting.svg import WIDTH, Frame, color_class, frame, mark, padded, panel, place_labels, polyline, text

HEIGHT = 330.0


def local_neighbor(series: Sequence[Series]) -> list[Markup]:
    """Draw neighbor over local accuracy: large marks are means over seeds, small ones seeds.

    Gives no panel where no row has both.
    """
    known = [s for s in series if s.values("local") and s.values("neighbor")]
    if not known:
        return []
    low = min(lowest_drawn(series, "local"), lowest_drawn(series, "neighbor"))
    values = [v for s in known for v in [*s.values("local"), *s.values("neighbor")] if v >= low]
    domain = padded(values or [low], least=6, low=0, high=100)
    area = frame(domain, domain, height=HEIGHT)
    at = {s.name: (area.x(mean(s.values("local"))), area.y(mean(s.values("neighbor")))) for s in known}
    parts = [area.axes("local accuracy, %", "neighbor accuracy, %"), _contours(area)]
    for members in families([s for s in known if s.has_budget]):
        if len(members) > 1:
            parts.append(polyline([at[s.name] for s in members], f"line thin {color_class(members[0].style)}"))
    for s in known:
        parts.extend(_seeds(area, s))
    for s in known:
        tip = f"{s.name}: local {with_spread(s.values('local'))}, neighbor {with_spread(s.values('neighbor'))}"
        parts.append(mark(s.style, *at[s.name], tip))
    named = {s.name: s for s in known}
    if len(known) > MAX_LABELS:
        named = {members[-1].family: members[-1] for members in families(known)}
    if len(named) <= MAX_LABELS:
        labels = [(name, *at[s.name], s.style) for name, s in named.items()]
        parts.append(place_labels(labels, (area.x.start, area.y.stop, float(WIDTH), area.y.start)))
    described = "; ".join(
        f"{s.name}: local {mean(s.values('local')):.1f}, neighbor {mean(s.values('neighbor')):.1f}" for s in known
    )
    return [panel("tradeoff", "Local against neighbor", f"Accuracy in percent. {described}.", HEIGHT, *parts)]


def _seeds(area: Frame, s: Series) -> list[Markup]:
    """Draw a small mark for every seed, if there are several."""
    marks = []
    for member in s.members if len(s.members) > 1 else ():
        x, y = (100 * member.result.scores[score] for score in ("local", "neighbor"))
        if math.isfinite(x) and math.isfinite(y):
            tip = f"{s.name}, seed {member.run.seed}: local {x:.1f}, neighbor {y:.1f}"
            marks.append(mark(s.style, area.x(x), area.y(y), tip, size=0.45, class_="mark seed"))
    return marks


def _contours(area: Frame) -> Markup:
    """Draw where the harmonic mean h of both axes is the same, y = h x / (2 x - h), and where both are equal."""
    low, high = area.x.low, area.x.high
    parts = [polyline([(area.x(low), area.y(low)), (area.x(high), area.y(high))], "diagonal")]
    for level in area.x.ticks(6):
        points = [
            (float(x), level * float(x) / (2 * float(x) - level)) for x in np.linspace(low, high, 60) if 2 * x > level
        ]
        inside = [(area.x(x), area.y(y)) for x, y in points if low <= y <= high]
        if len(inside) > 1:
            x, y = inside[-1]
            parts.append(polyline(inside, "contour"))
            parts.append(text(x - 3, y - 4, f"{level:g}", "end", class_="contour-label"))
    return tag("g", *parts)
