"""The curves: privacy against utility, local against neighbor, accuracy and epsilon over rounds.

Each function takes series and gives panels, or an empty list where the records hold nothing to draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup

from hushprompt.report.markup import tag
from hushprompt.report.runs import number
from hushprompt.report.series import Series, mean, spread
from hushprompt.report.svg import (
    WIDTH,
    Frame,
    color_class,
    end_labels,
    frame,
    line_class,
    log_padded,
    mark,
    padded,
    panel,
    place_labels,
    polyline,
    text,
    whisker,
)

NAMES = {
    "local": "local accuracy",
    "neighbor": "neighbor accuracy",
    "harmonic_mean": "harmonic mean",
    "worst_client": "worst client",
}
AUDIENCES = {"public": "the public", "personal": "a prompt's holder"}
LABEL_ROOM = 118
MAX_LABELS = 12
"""More names than this do not fit beside the lines; the legend and the marks still tell them apart."""
MAX_BANDS = 4
"""More bands than this hide each other."""


def privacy_utility(series: Sequence[Series]) -> list[Markup]:
    """Draw accuracy over epsilon, a curve a family; rows without a finite epsilon are horizontal lines."""
    drawn = [s for s in series if s.has_budget and (s.epsilon or 0) > 0]
    if not drawn:
        return []
    return [_utility_panel(score, series, drawn) for score in ("harmonic_mean", "local", "neighbor")]


def _utility_panel(score: str, series: Sequence[Series], drawn: Sequence[Series]) -> Markup:
    """Draw one score over epsilon."""
    height, room = 270.0, LABEL_ROOM
    means = {s.name: mean(s.values(score)) for s in series}
    known = [s for s in series if math.isfinite(means[s.name])]
    points = [s for s in drawn if s in known]
    flat = [s for s in known if not s.has_budget]
    if not points:
        return panel(f"utility-{score}", NAMES[score], "There is no value to draw.", 40)
    spans = [v for s in known for v in (means[s.name] - _known(spread(s.values(score))), means[s.name] + _known(spread(s.values(score))))]  # fmt: skip  # noqa: E501
    area = frame(log_padded([_budget(s) for s in points]), padded(spans, least=4, low=0, high=100), height=height,
                 right=room, is_log=True)  # fmt: skip
    parts = [area.axes("epsilon, log scale", "%")]
    for s in flat:
        y = area.y(means[s.name])
        dashes = line_class(s.style) if s.learns else "line ref dashed"
        parts.append(tag("g", tag("title", f"{s.name}: {means[s.name]:.1f}"),
                         tag("line", x1=area.x.start, x2=area.x.stop, y1=y, y2=y, class_=f"{dashes} level")))  # fmt: skip
    families = {members[0].family: members for members in _families(points)}
    shift = _dodge(list(families))
    ends = [(s.name, area.y(means[s.name]), s.style) for s in flat]
    for family, members in families.items():
        places = [(area.x(_budget(s)) + shift[family], area.y(means[s.name])) for s in members]
        if len(places) > 1:
            parts.append(polyline(places, f"line d0 {color_class(members[0].style)}"))
        for s, (x, y) in zip(members, places, strict=True):
            deviation = spread(s.values(score))
            if deviation > 0:
                parts.append(whisker(x, area.y(means[s.name] - deviation), area.y(means[s.name] + deviation), s.style))
            parts.append(mark(s.style, x, y, f"{s.name}: {_with_spread(s.values(score))} at epsilon {_budget(s):.3g}"))
        ends.append((family if len(members) > 1 else members[0].name, places[-1][1], members[0].style))
    if len(ends) <= MAX_LABELS:
        parts.append(end_labels(ends, area.x.stop + 8, area.y.stop, area.y.start))
    described = "; ".join(f"{s.name}: {means[s.name]:.1f}" for s in known)
    return panel(f"utility-{score}", f"{NAMES[score]} by epsilon", f"In percent, mean over seeds. {described}.", height, *parts)  # fmt: skip  # noqa: E501


def local_neighbor(series: Sequence[Series]) -> list[Markup]:
    """Draw neighbor over local accuracy with contours of equal harmonic mean: large marks are means, small ones seeds."""
    height = 330.0
    places = {s.name: (mean(s.values("local")), mean(s.values("neighbor"))) for s in series}
    known = [s for s in series if all(map(math.isfinite, places[s.name]))]
    if not known:
        return []
    domain = padded([v for s in known for v in [*s.values("local"), *s.values("neighbor")]], least=6, low=0, high=100)
    area = frame(domain, domain, height=height)
    parts = [area.axes("local accuracy, %", "neighbor accuracy, %"), _contours(area, domain)]
    for s in known:
        pairs = [(100 * m.result.scores["local"], 100 * m.result.scores["neighbor"], m.run.seed) for m in s.members]
        for x, y, seed in pairs:
            if len(pairs) > 1 and math.isfinite(x) and math.isfinite(y):
                tip = f"{s.name}, seed {seed}: local {x:.1f}, neighbor {y:.1f}"
                parts.append(mark(s.style, area.x(x), area.y(y), tip, size=0.45, class_="mark seed"))
    at = {s.name: (area.x(places[s.name][0]), area.y(places[s.name][1])) for s in known}
    for family in _families([s for s in known if s.has_budget]):
        if len(family) > 1:
            parts.append(polyline([at[s.name] for s in family], f"line thin {color_class(family[0].style)}"))
    for s in known:
        tip = f"{s.name}: local {_with_spread(s.values('local'))}, neighbor {_with_spread(s.values('neighbor'))}"
        parts.append(mark(s.style, *at[s.name], tip))
    named = {s.name: s for s in known} if len(known) <= MAX_LABELS else {f[-1].family: f[-1] for f in _families(known)}
    labels = [(name, *at[s.name], s.style) for name, s in named.items()]
    if len(labels) <= MAX_LABELS:
        parts.append(place_labels(labels, (area.x.start, area.y.stop, float(WIDTH), area.y.start)))
    described = "; ".join(f"{s.name}: local {places[s.name][0]:.1f}, neighbor {places[s.name][1]:.1f}" for s in known)
    return [panel("tradeoff", "Local against neighbor", f"Accuracy in percent. {described}.", height, *parts)]


def _contours(area: Frame, domain: tuple[float, float]) -> Markup:
    """Draw where the harmonic mean of both axes is the same: y = h x / (2 x - h)."""
    low, high = domain
    parts = []
    for level in area.x.ticks(6):
        xs = [x for x in np.linspace(low, high, 60) if 2 * x > level]
        points = [(float(x), level * float(x) / (2 * float(x) - level)) for x in xs]
        inside = [(area.x(x), area.y(y)) for x, y in points if low <= y <= high]
        if len(inside) > 1:
            parts.append(polyline(inside, "contour"))
            parts.append(text(inside[-1][0] - 3, inside[-1][1] - 4, f"{level:g}", "end", class_="contour-label"))
    diagonal = [(area.x(low), area.y(low)), (area.x(high), area.y(high))]
    return tag("g", polyline(diagonal, "diagonal"), *parts)


def over_rounds(series: Sequence[Series]) -> list[Markup]:
    """Draw local and neighbor accuracy after each round: lines are means over seeds, bands reach from least to most."""
    drawn = [s for s in series if s.learns and len(_curve(s, lambda r: number(r.get("local")))) > 1]
    if not drawn:
        return []
    groups = _readable(drawn)
    untrained = [s for s in series if not s.learns]
    curves = {score: {s.name: _curve(s, lambda r: 100 * number(r.get(score))) for s in drawn} for score in ("local", "neighbor")}  # fmt: skip  # noqa: B023, E501
    return [
        _rounds_panel(
            f"rounds-{score}-{index}", score, _titled(NAMES[score], group, groups), group, untrained, curves[score]
        )
        for index, group in enumerate(groups)
        for score in ("local", "neighbor")
    ]


Curves = dict[str, dict[int, list[float]]]
"""Values of all seeds, by series and round."""


def _rounds_panel(
    slug: str, score: str, title: str, drawn: Sequence[Series], untrained: Sequence[Series], curves: Curves
) -> Markup:
    """Draw one score over the rounds; the axes reach around all curves, so that panels can be compared."""
    height, room = 270.0, LABEL_ROOM
    levels = {s.name: mean(s.values(score)) for s in untrained}
    known = [s for s in untrained if math.isfinite(levels[s.name])]
    values = [v for curve in curves.values() for found in curve.values() for v in found]
    rounds = [r for curve in curves.values() for r in curve]
    domain = padded([*values, *(levels[s.name] for s in known)], least=4, low=0, high=100)
    area = frame((min(rounds), max(rounds)), domain, height=height, right=room)
    parts = [area.axes("round", "%", x_ticks=_round_ticks(area))]
    ends = []
    for s in known:
        y = area.y(levels[s.name])
        parts.append(tag("line", x1=area.x.start, x2=area.x.stop, y1=y, y2=y, class_="line ref dashed level"))
        ends.append((s.name, y, s.style))
    is_one_family = len(drawn) > 1 and len({s.family for s in drawn}) == 1
    has_bands = len(drawn) <= (2 if is_one_family else MAX_BANDS)
    for s in drawn:
        curve = curves[s.name]
        if not curve:
            continue
        if max(map(len, curve.values())) > 1 and has_bands:
            upper = [(area.x(r), area.y(max(found))) for r, found in curve.items()]
            lower = [(area.x(r), area.y(min(found))) for r, found in curve.items()]
            parts.append(polyline([*upper, *reversed(lower)], f"band {color_class(s.style)}"))
        line = [(area.x(r), area.y(mean(found))) for r, found in curve.items()]
        parts.append(polyline(line, line_class(s.style)))
        last = list(curve)[-1]
        tip = f"{s.name}, round {last}: {mean(curve[last]):.1f}"
        parts.append(mark(s.style, *line[-1], tip, size=0.7))
        ends.append((s.budget if is_one_family else s.name, line[-1][1], s.style))
    if len(ends) <= MAX_LABELS:
        parts.append(end_labels(ends, area.x.stop + 8, area.y.stop, area.y.start))
    described = "; ".join(f"{s.name}: from {_ends(curves[s.name])}" for s in drawn if curves[s.name])
    return panel(slug, f"{title} over rounds", f"In percent, mean over seeds. {described}.", height, *parts)


def epsilon_over_rounds(series: Sequence[Series]) -> list[Markup]:
    """Draw the epsilon spent so far, a panel an audience; the same for all seeds, since no data enters it."""
    panels = []
    for audience in _audiences(series):
        curves = {}
        for s in series:
            if s.has_budget:
                spent = {int(r["round_index"]): number(r.get("epsilon", {}).get(audience)) for r in s.first.rounds}
                curves[s.name] = {at: value for at, value in spent.items() if math.isfinite(value)}
        drawn = [s for s in series if len(curves.get(s.name, {})) > 1]
        groups = _readable(drawn) if drawn else []
        for index, group in enumerate(groups):
            title = _titled(f"epsilon for {AUDIENCES.get(audience, audience)}", group, groups)
            panels.append(_epsilon_panel(f"epsilon-{audience}-{index}", title, group, curves))
    return panels


def _epsilon_panel(slug: str, title: str, drawn: Sequence[Series], curves: dict[str, dict[int, float]]) -> Markup:
    """Draw what one audience could have learned after each round."""
    height, room = 250.0, LABEL_ROOM
    most = max(value for s in drawn for value in curves[s.name].values())
    rounds = [at for s in drawn for at in curves[s.name]]
    area = frame((min(rounds), max(rounds)), (0, most * 1.08 or 1.0), height=height, right=room)
    parts = [area.axes("round", "epsilon", x_ticks=_round_ticks(area))]
    ends = []
    for s in drawn:
        line = [(area.x(at), area.y(value)) for at, value in curves[s.name].items()]
        parts.append(polyline(line, line_class(s.style)))
        last, value = list(curves[s.name].items())[-1]
        parts.append(mark(s.style, *line[-1], f"{s.name}, round {last}: epsilon {value:.3g}", size=0.7))
        ends.append((f"{s.family}: {value:.3g}", line[-1][1], s.style))
    if len(ends) <= MAX_LABELS:
        parts.append(end_labels(ends, area.x.stop + 8, area.y.stop, area.y.start))
    described = "; ".join(f"{s.name}: {list(curves[s.name].values())[-1]:.3g} at the end" for s in drawn)
    return panel(slug, title, f"Spent so far, by round. {described}.", height, *parts)


def _curve(s: Series, value_of: Callable[[dict], float]) -> dict[int, list[float]]:  # type: ignore[type-arg]
    """Give the values of all seeds at each round that has one."""
    curve: dict[int, list[float]] = {}
    for member in s.members:
        for record in member.rounds:
            value = value_of(record)  # type: ignore[arg-type]
            if math.isfinite(value):
                curve.setdefault(int(record["round_index"]), []).append(value)
    return dict(sorted(curve.items()))


def _readable(drawn: Sequence[Series], most: int = 8) -> list[list[Series]]:
    """Keep all series together while a reader can follow them, else give each family a panel of its own."""
    return [list(drawn)] if len(drawn) <= most else _families(drawn)


def _families(series: Sequence[Series]) -> list[list[Series]]:
    """Put the members of each family together."""
    families: dict[str, list[Series]] = {}
    for s in series:
        families.setdefault(s.family, []).append(s)
    return list(families.values())


def _titled(what: str, group: Sequence[Series], groups: Sequence[Sequence[Series]]) -> str:
    """Name a panel, and the family that it has to itself."""
    return f"{what}, {group[0].family}" if len(groups) > 1 else what


def _audiences(series: Sequence[Series]) -> list[str]:
    """Give the audiences that the records name, in a fixed order."""
    named = {audience for s in series for record in s.first.rounds for audience in record.get("epsilon", {})}
    return sorted(named, key=lambda audience: (list(AUDIENCES).index(audience) if audience in AUDIENCES else 99, audience))  # fmt: skip  # noqa: E501


def _round_ticks(area: Frame) -> list[float]:
    """Give whole rounds."""
    return [tick for tick in area.x.ticks() if tick == int(tick)]


def _dodge(families: Sequence[str]) -> dict[str, float]:
    """Move the curves a little apart, so that bars of equal epsilon do not cover each other."""
    middle = (len(families) - 1) / 2
    return {family: 5 * (index - middle) for index, family in enumerate(families)}


def _budget(s: Series) -> float:
    """Epsilon of a series that has one."""
    assert s.epsilon is not None
    return s.epsilon


def _known(value: float) -> float:
    """Zero for a spread that one seed does not have."""
    return 0.0 if math.isnan(value) else value


def _ends(curve: dict[int, list[float]]) -> str:
    """Say where a curve begins and ends."""
    first, last = min(curve), max(curve)
    return f"{mean(curve[first]):.1f} in round {first} to {mean(curve[last]):.1f} in round {last}"


def _with_spread(values: Sequence[float]) -> str:
    """Write a mean and, over several seeds, a standard deviation."""
    return f"{mean(values):.1f}" + (f" ± {spread(values):.1f}" if len(values) > 1 else "")


__all__ = ["epsilon_over_rounds", "local_neighbor", "over_rounds", "privacy_utility"]
