"""The curves: accuracy over epsilon, accuracy and epsilon over rounds.

Each function takes series and gives panels, or an empty list where the records hold nothing to draw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from hushprompt.reporting.markup import tag
from hushprompt.reporting.runs import number
from hushprompt.reporting.series import Series, Style, families, lowest_drawn, mean, spread, with_spread
from hushprompt.reporting.svg import (
    Frame,
    color_class,
    end_labels,
    frame,
    line_class,
    log_padded,
    mark,
    padded,
    panel,
    polyline,
    whisker,
)

NAMES = {
    "local": "local accuracy",
    "neighbor": "neighbor accuracy",
    "harmonic_mean": "harmonic mean",
    "worst_client": "worst client",
}
AUDIENCES = {"public": "the public", "personal": "a prompt's holder", "server": "the server"}
LABEL_ROOM, NO_LABELS = 118, 14
MAX_LABELS = 12
"""More names than this do not fit beside the lines; the legend and the marks still tell them apart."""
MAX_TOGETHER = 8
"""More lines than this get a panel for each family."""
MAX_SHIFT = 24
"""Marks of equal epsilon stand apart by this at most, in units, however many there are."""
MAX_BANDS, MAX_BANDS_OF_FAMILY = 4, 2
"""More bands than this hide each other; those of one family have one color."""

Curve = Mapping[int, Sequence[float]]
"""Values of all seeds, by round."""


def privacy_utility(series: Sequence[Series]) -> list[Markup]:
    """Draw accuracy over epsilon, a curve a family; rows without a finite epsilon are horizontal lines."""
    if not any(s.budget_epsilon > 0 for s in series):
        return []
    return [_utility_panel(score, series) for score in ("harmonic_mean", "local", "neighbor")]


def _utility_panel(score: str, series: Sequence[Series]) -> Markup:
    """Draw one score over epsilon."""
    slug, title = f"utility-{score}", f"{NAMES[score]} by epsilon"
    known = [s for s in series if s.values(score)]
    points = [s for s in known if s.budget_epsilon > 0]
    flat = [s for s in known if not s.has_budget]
    if not points:
        return panel(slug, title, "There is no value to draw.", 40)
    low = lowest_drawn(series, score)
    reach = [value for s in known for value in _reach(s, score) if value >= low] or [low]
    x_domain = log_padded([s.budget_epsilon for s in points])
    curves = families(points)
    right = LABEL_ROOM if len(flat) + len(curves) <= MAX_LABELS else NO_LABELS
    area = frame(x_domain, padded(reach, least=4, low=0, high=100), height=270, right=right, is_log=True)
    parts = [area.axes("epsilon, log scale", "%")]
    parts.extend(_level(area, s, mean(s.values(score))) for s in flat)
    ends = [(s.name, area.y(mean(s.values(score))), s.style) for s in flat]
    step = min(5, MAX_SHIFT / len(curves))  # so that bars of equal epsilon do not cover each other
    for index, members in enumerate(curves):
        shift = step * (index - (len(curves) - 1) / 2)
        places = [(area.x(s.budget_epsilon) + shift, area.y(mean(s.values(score)))) for s in members]
        if len(places) > 1:
            parts.append(polyline(places, f"line d0 {color_class(members[0].style)}"))
        for s, (x, y) in zip(members, places, strict=True):
            low, high = _reach(s, score)
            if high > low:
                parts.append(whisker(x, area.y(low), area.y(high), s.style))
            tip = f"{s.name}: {with_spread(s.values(score))} at epsilon {s.budget_epsilon:.3g}"
            parts.append(mark(s.style, x, y, tip))
        name = members[0].family if len(members) > 1 else members[0].name
        ends.append((name, places[-1][1], members[0].style))
    parts.extend(_names(area, ends))
    described = "; ".join(f"{s.name}: {mean(s.values(score)):.1f}" for s in known)
    return panel(slug, title, f"In percent, mean over seeds. {described}.", 270, *parts)


def over_rounds(series: Sequence[Series]) -> list[Markup]:
    """Draw local and neighbor accuracy after each round: lines are means over seeds, bands reach from least to most."""
    drawn = [s for s in series if s.learns and len(_curve(s, "local")) > 1]
    untrained = [s for s in series if not s.learns]
    groups = _readable(drawn)
    curves = {score: {s.name: _curve(s, score) for s in drawn} for score in ("local", "neighbor")}
    return [
        _rounds_panel(f"{score}-{index}", score, group, groups, untrained, curves[score])
        for index, group in enumerate(groups)
        for score in ("local", "neighbor")
    ]


def _rounds_panel(
    slug: str,
    score: str,
    drawn: Sequence[Series],
    groups: Sequence[Sequence[Series]],
    untrained: Sequence[Series],
    curves: Mapping[str, Curve],
) -> Markup:
    """Draw one score of some series; the axes reach around the curves of all groups, so that panels can be compared."""
    levels = {s.name: mean(s.values(score)) for s in untrained if s.values(score)}
    low = lowest_drawn([*drawn, *untrained], score)
    values = [value for curve in curves.values() for found in curve.values() for value in found if value >= low]
    area = _round_frame(
        [at for curve in curves.values() for at in curve],
        padded([*values, *levels.values()], least=4, low=0, high=100),
    )
    parts = [area.axes("round", "%", x_ticks=_whole(area.x.ticks()))]
    parts.extend(_level(area, s, levels[s.name]) for s in untrained if s.name in levels)
    ends = [(s.name, area.y(levels[s.name]), s.style) for s in untrained if s.name in levels]
    is_alone = len(groups) > 1  # the panel's title names the family
    has_bands = len(drawn) <= (MAX_BANDS_OF_FAMILY if is_alone else MAX_BANDS)
    for s in drawn:
        curve = curves[s.name]
        if not curve:
            continue
        if has_bands and any(len(found) > 1 for found in curve.values()):
            upper = [(area.x(at), area.y(max(found))) for at, found in curve.items()]
            lower = [(area.x(at), area.y(min(found))) for at, found in curve.items()]
            parts.append(polyline([*upper, *reversed(lower)], f"band {color_class(s.style)}"))
        line = [(area.x(at), area.y(mean(found))) for at, found in curve.items()]
        parts.append(polyline(line, line_class(s.style)))
        last = max(curve)
        parts.append(mark(s.style, *line[-1], f"{s.name}, round {last}: {mean(curve[last]):.1f}", size=0.7))
        ends.append((s.budget if is_alone else s.name, line[-1][1], s.style))
    parts.extend(_names(area, ends))
    described = "; ".join(f"{s.name}: from {_ends(curves[s.name])}" for s in drawn if curves[s.name])
    title = _titled(f"{NAMES[score]} over rounds", drawn, groups)
    return panel(f"rounds-{slug}", title, f"In percent, mean over seeds. {described}.", 270, *parts)


def epsilon_over_rounds(series: Sequence[Series]) -> list[Markup]:
    """Draw the epsilon spent so far, a panel an audience; the same for all seeds, since no data enters it."""
    panels: list[Markup] = []
    for audience in _audiences(series):
        curves = {s.name: spent(s, audience) for s in series if s.has_budget}
        groups = _readable([s for s in series if len(curves.get(s.name, {})) > 1])
        panels.extend(
            _epsilon_panel(f"epsilon-{audience}-{index}", audience, group, groups, curves)
            for index, group in enumerate(groups)
        )
    return panels


def spent(s: Series, audience: str) -> dict[int, float]:
    """Return the epsilon of an audience after each round that has one on record."""
    found = {int(record["round_index"]): number(record.get("epsilon", {}).get(audience)) for record in s.first.rounds}
    return {at: value for at, value in found.items() if math.isfinite(value)}


def _epsilon_panel(
    slug: str,
    audience: str,
    drawn: Sequence[Series],
    groups: Sequence[Sequence[Series]],
    curves: Mapping[str, Mapping[int, float]],
) -> Markup:
    """Draw what one audience could have learned after each round."""
    most = max(value for s in drawn for value in curves[s.name].values())
    area = _round_frame([at for s in drawn for at in curves[s.name]], (0, most * 1.08 or 1.0), height=250)
    parts = [area.axes("round", "epsilon", x_ticks=_whole(area.x.ticks()))]
    ends = []
    for s in drawn:
        line = [(area.x(at), area.y(value)) for at, value in curves[s.name].items()]
        last, value = max(curves[s.name].items())
        parts.append(polyline(line, line_class(s.style)))
        parts.append(mark(s.style, *line[-1], f"{s.name}, round {last}: epsilon {value:.3g}", size=0.7))
        ends.append((f"{s.family}: {value:.3g}", line[-1][1], s.style))
    parts.extend(_names(area, ends))
    described = "; ".join(f"{s.name}: {max(curves[s.name].items())[1]:.3g} at the end" for s in drawn)
    title = _titled(f"epsilon for {AUDIENCES.get(audience, audience)}", drawn, groups)
    return panel(slug, title, f"Spent so far, by round. {described}.", 250, *parts)


def _curve(s: Series, score: str) -> dict[int, list[float]]:
    """Return a score in percent at each round that has one, all seeds together."""
    curve: dict[int, list[float]] = {}
    for member in s.members:
        for record in member.rounds:
            value = 100 * number(record.get(score))
            if math.isfinite(value):
                curve.setdefault(int(record["round_index"]), []).append(value)
    return dict(sorted(curve.items()))


def _round_frame(rounds: Sequence[int], y: tuple[float, float], height: float = 270) -> Frame:
    """Return the plotting area over rounds."""
    return frame((min(rounds), max(rounds)), y, height=height, right=LABEL_ROOM)


def _level(area: Frame, s: Series, value: float) -> Markup:
    """Draw a row that has no place on the horizontal axis."""
    y = area.y(value)
    style = line_class(s.style) if s.learns else "line ref dashed"
    line = tag("line", x1=area.x.start, x2=area.x.stop, y1=y, y2=y, class_=f"{style} level")
    return tag("g", tag("title", f"{s.name}: {value:.1f}"), line)


def _names(area: Frame, ends: Sequence[tuple[str, float, Style]]) -> list[Markup]:
    """Write the names at the ends of the lines, unless there are too many."""
    if len(ends) > MAX_LABELS:
        return []
    return [end_labels(ends, area.x.stop + 8, area.y.stop, area.y.start)]


def _readable(drawn: Sequence[Series]) -> list[list[Series]]:
    """Keep all series together while a reader can follow them, else give each family a panel of its own."""
    if not drawn:
        return []
    return [list(drawn)] if len(drawn) <= MAX_TOGETHER else families(drawn)


def _titled(what: str, group: Sequence[Series], groups: Sequence[Sequence[Series]]) -> str:
    """Name a panel, and the family that it has to itself."""
    return f"{group[0].family}: {what}" if len(groups) > 1 else what


def _audiences(series: Sequence[Series]) -> list[str]:
    """Return the audiences that the records name, the known ones first."""
    named = {audience for s in series for record in s.first.rounds for audience in record.get("epsilon", {})}
    return [who for who in AUDIENCES if who in named] + sorted(named - set(AUDIENCES))


def _whole(ticks: Sequence[float]) -> list[float]:
    """Keep the whole numbers."""
    return [tick for tick in ticks if tick == int(tick)]


def _reach(s: Series, score: str) -> tuple[float, float]:
    """Return the mean less and plus one standard deviation over seeds; the mean itself for one seed."""
    values = s.values(score)
    deviation = spread(values) if len(values) > 1 else 0.0
    return mean(values) - deviation, mean(values) + deviation


def _ends(curve: Curve) -> str:
    """Say where a curve begins and ends."""
    first, last = min(curve), max(curve)
    return f"{mean(curve[first]):.1f} in round {first} to {mean(curve[last]):.1f} in round {last}"
