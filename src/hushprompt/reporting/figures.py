"""The figures, one function each: from finished runs to panels, or None where the records hold nothing to draw.

To add a figure, write such a function and put it into KINDS.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hushprompt.errors import DataError
from hushprompt.evaluation.answers import ANSWER_SHARES
from hushprompt.privacy.statements import number
from hushprompt.reporting import maps, roc
from hushprompt.reporting.axes import (
    budget_of,
    draw_level,
    epsilon_label,
    epsilon_ticks,
    families,
    lowest_drawn,
    mean_of,
    on_the_edge,
    padded,
    readable,
    round_axis,
    titled,
)
from hushprompt.reporting.drawing import INK, RULE, SOFT, Drawing, Panel, line, save, tip
from hushprompt.reporting.pooling import MEASURES, Group, pool, simulated
from hushprompt.reporting.styles import Style
from hushprompt.runs.reader import FinishedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {
    "local": "local accuracy",
    "neighbor": "neighbor accuracy",
    "harmonic_mean": "harmonic mean",
    "worst_client": "worst client",
    **MEASURES,
}
READERS = {"public": "the public", "personal": "a prompt's holder", "server": "the server"}
"""Audiences, short enough for a panel's title."""
MAX_BANDS, MAX_BANDS_OF_FAMILY = 4, 2
"""More bands than this hide each other; those of one family have one color."""
MAX_DOTS = 400
"""Above so many clients and seeds, dots become one blot; the box and its whiskers stay."""
Curve = Mapping[int, Sequence[float]]
"""Values of all seeds, by round."""


def figure(runs: Sequence[FinishedRun], kind: str, path: Path) -> None:
    """Write a figure of finished runs for a paper.

    Args:
        runs: as `reader.find` returns them.
        kind: one of KINDS.
        path: a file that ends in .pdf, .svg or .png.

    Raises:
        DataError: the records of these runs hold nothing to draw.
        ConfigError: the ending of the file is another.
    """
    groups = pool(runs)
    drawing = KINDS[kind](runs, groups)
    if drawing is None:
        others = ", ".join(name for name, draw in KINDS.items() if draw(runs, groups) is not None) or "none"
        raise DataError(f"There is no figure of the kind {kind!r}: {MISSING[kind]} There is for: {others}.")
    save(drawing, path)


def budget(_: Sequence[FinishedRun], groups: Sequence[Group]) -> Drawing | None:
    """Draw accuracy over epsilon, a curve a family; arms without a finite epsilon are horizontal lines."""
    panels = []
    for score in ("harmonic_mean", "local", "neighbor", *ANSWER_SHARES):
        known = [group for group in groups if group.percents(score)]
        if not any(budget_of(group) > 0 for group in known):
            continue
        described = "; ".join(f"{group.name}: {mean_of(group, score):.1f}" for group in known)
        draw = functools.partial(_draw_budget, score=score, groups=known)
        panels.append(
            Panel(
                slug=f"utility-{score}",
                title=f"{_capital(NAMES[score])} by epsilon, %",
                description=f"In percent, mean over seeds. {described}.",
                draw=draw,
            )
        )
    if not panels:
        return None
    parts = ["Accuracy over epsilon: further left is more private. Marks are means over seeds"]
    parts.append(", bars one standard deviation." if _has_seeds(g for g in groups if budget_of(g)) else ".")
    points = [(group.family, budget_of(group)) for group in groups if budget_of(group) > 0]
    if len({epsilon for _, epsilon in points}) < len(points):
        parts.append(" Marks of equal epsilon stand a little apart.")
    if any(not group.learns for group in groups):
        parts.append(" Gray, dotted horizontal lines: no private data used.")
    if any(group.learns and not group.has_budget for group in groups):
        parts.append(" Colored horizontal lines: no noise, so no guarantee.")
    caption = "".join(parts) + on_the_edge(groups, "harmonic_mean")
    return Drawing(
        slug="utility", panels=panels, caption=caption, note=simulated(groups), legend=_family_legend(groups)
    )


def _draw_budget(axes: Axes, score: str, groups: Sequence[Group]) -> None:
    curves = families(group for group in groups if budget_of(group) > 0)
    low = lowest_drawn(groups, score)
    epsilons = [budget_of(group) for members in curves for group in members] or [1.0]
    margin = 10**0.15 if len(set(epsilons)) > 1 else 2.0
    axes.set_xscale("log")
    axes.set(xlabel=f"{epsilon_label(groups)}, log scale", xlim=(min(epsilons) / margin, max(epsilons) * margin))
    epsilon_ticks(axes, epsilons)
    reach = []
    for group in groups:
        if not group.has_budget:
            reach.append(mean_of(group, score))
            draw_level(axes, group, reach[-1], low)
    for index, members in enumerate(curves):
        # Marks of equal epsilon stand a little apart, so that their bars do not cover each other.
        shift = 10 ** ((index - (len(curves) - 1) / 2) * min(0.02, 0.1 / len(curves)))
        x = [budget_of(group) * shift for group in members]
        y = np.array([mean_of(group, score) for group in members])
        deviation = np.nan_to_num([100 * group.spread(score).std for group in members])
        reach += [*(y - deviation), *(y + deviation)]
        style = {**line(members[0].style), "linestyle": "-"}
        words = ", ".join(f"{group.spread(score).text()} at epsilon {budget_of(group):.3g}" for group in members)
        axes.errorbar(x, y, np.where(deviation > 0, deviation, np.nan), fmt="none", ecolor=style["color"], capsize=3)
        axes.plot(x, np.maximum(y, low), gid=tip(f"{members[0].family}: {words}"), clip_on=False, zorder=3, **style)
    axes.set_ylim(padded([value for value in reach if value >= low] or [low], least=4))


def tradeoff(_: Sequence[FinishedRun], groups: Sequence[Group]) -> Drawing | None:
    """Draw neighbor over local accuracy: large marks are means over seeds, small ones single seeds."""
    known = [group for group in groups if group.percents("local") and group.percents("neighbor")]
    if not known:
        return None
    described = "; ".join(
        f"{g.name}: local {mean_of(g, 'local'):.1f}, neighbor {mean_of(g, 'neighbor'):.1f}" for g in known
    )
    panel = Panel(
        slug="tradeoff",
        title="Local against neighbor",
        description=f"Accuracy in percent. {described}.",
        draw=functools.partial(_draw_tradeoff, groups=known),
        height=330,
        margins=(46, 30, 12, 42),
    )
    parts = [
        "Up and to the right is better. On a thin, numbered curve the harmonic mean of both is the same; on the "
        "dotted line a prompt is as good for others as at home. Large marks are means"
    ]
    parts.append(", small ones single seeds." if _has_seeds(known) else ".")
    if any(group.style.is_hollow for group in known):
        parts.append(" Hollow marks have no guarantee to show.")
    if any(len(members) > 1 for members in families(g for g in known if g.has_budget)):
        parts.append(" A line joins the budgets of one method.")
    caption = "".join(parts) + on_the_edge(known, "local")
    return Drawing(
        slug="tradeoff", panels=[panel], caption=caption, note=simulated(known), legend=_family_legend(known)
    )


def _draw_tradeoff(axes: Axes, groups: Sequence[Group]) -> None:
    """Draw marks over curves of equal harmonic mean."""
    low = min(lowest_drawn(groups, "local"), lowest_drawn(groups, "neighbor"))
    values = [value for g in groups for score in ("local", "neighbor") for value in g.percents(score) if value >= low]
    limits = padded(values or [low], least=6)
    axes.set(xlabel="local accuracy, %", ylabel="neighbor accuracy, %", xlim=limits, ylim=limits, aspect="equal")
    axes.grid(visible=False)
    axes.plot(limits, limits, color=SOFT, linewidth=0.8, linestyle=(0, (1, 4)))
    grid = np.linspace(*limits, 80)
    x, y = np.meshgrid(np.maximum(grid, 1e-9), np.maximum(grid, 1e-9))
    contours = axes.contour(x, y, 2 * x * y / (x + y), levels=axes.get_yticks(), colors=RULE, linewidths=1.1)
    axes.clabel(contours, fmt="%g", fontsize=9.5, colors=SOFT)
    for members in families(group for group in groups if group.has_budget):
        points = np.maximum([[mean_of(group, score) for group in members] for score in ("local", "neighbor")], low)
        axes.plot(*points, color=members[0].style.color, linewidth=1, alpha=0.7)
    for group in groups:
        style = {**line(group.style), "linestyle": ""}
        if len(group.arms) > 1:
            seeds = np.array([[100 * arm.score(score) for arm in group.arms] for score in ("local", "neighbor")])
            axes.plot(*np.maximum(seeds, low), **{**style, "markersize": 3.5, "markeredgewidth": 0.7}, alpha=0.62)
    for group in groups:
        style = {**line(group.style), "linestyle": ""}
        point = [[max(mean_of(group, score), low)] for score in ("local", "neighbor")]
        words = f"{group.name}: local {group.spread('local').text()}, neighbor {group.spread('neighbor').text()}"
        axes.plot(*point, gid=tip(words), zorder=3, clip_on=False, **{**style, "markersize": 9})


def curves(_: Sequence[FinishedRun], groups: Sequence[Group]) -> Drawing | None:
    """Draw local and neighbor accuracy after each round: lines are means over seeds."""
    drawn = [group for group in groups if group.learns and len(_curve(group, "local")) > 1]
    if not drawn:
        return None
    untrained = [group for group in groups if not group.learns]
    together = readable(drawn)
    is_alone = len(together) > 1
    most_bands = MAX_BANDS_OF_FAMILY if is_alone else MAX_BANDS
    banded = [g for members in together for g in members if len(members) <= most_bands and len(g.arms) > 1]
    panels = []
    for index, members in enumerate(together):
        for score in courses(members):
            ends = "; ".join(f"{g.name}: from {_ends(_curve(g, score))}" for g in members if _curve(g, score))
            panels.append(
                Panel(
                    slug=f"rounds-{score}-{index}",
                    title=titled(members, f"{_capital(NAMES[score])} over rounds, %", is_alone=is_alone),
                    description=f"In percent, mean over seeds. {ends}.",
                    draw=functools.partial(
                        _draw_curves, score=score, groups=members, untrained=untrained, everyone=drawn, banded=banded
                    ),
                )
            )
    parts = ["Accuracy on test images after each round; lines are means over seeds."]
    if banded:
        parts.append("Bands reach from the lowest to the highest seed.")
    if any(group.percents("local") for group in untrained):
        parts.append("Gray, dotted horizontal lines: arms that learn nothing.")
    parts.append("No round was chosen by looking at this figure.")
    legend = [(group.name, group.style) for group in [*untrained, *drawn]]
    return Drawing(slug="rounds", panels=panels, caption=" ".join(parts), note=simulated(drawn), legend=legend)


def _draw_curves(
    axes: Axes,
    score: str,
    groups: Sequence[Group],
    untrained: Sequence[Group],
    everyone: Sequence[Group],
    banded: Sequence[Group],
) -> None:
    """Draw one score of some groups; the axes reach around all groups, so that panels can be compared."""
    low = lowest_drawn([*everyone, *untrained], score)
    found = [_curve(group, score) for group in everyone]
    values = [value for curve in found for seeds in curve.values() for value in seeds if value >= low]
    rounds = [at for curve in found for at in curve] or [1]
    round_axis(axes, rounds)
    for group in untrained:
        if group.percents(score):
            values.append(mean_of(group, score))
            draw_level(axes, group, values[-1], low)
    for group in groups:
        curve = _curve(group, score)
        if not curve:
            continue
        if group in banded:
            lows, highs = [min(seeds) for seeds in curve.values()], [max(seeds) for seeds in curve.values()]
            axes.fill_between(list(curve), lows, highs, color=group.style.color, alpha=0.13, linewidth=0)
        means = [float(np.mean(seeds)) for seeds in curve.values()]
        words = f"{group.name}: {_ends(curve)}"
        style = {**line(group.style), "markevery": [len(means) - 1], "markersize": 6}
        axes.plot(list(curve), np.maximum(means, low), gid=tip(words), **style)
    axes.set_ylim(padded(values or [low], least=4))


def spent(_: Sequence[FinishedRun], groups: Sequence[Group]) -> Drawing | None:
    """Draw the epsilon spent so far, a panel an audience; the same for all seeds, since no data enters it."""
    panels: list[Panel] = []
    shown: list[Group] = []
    for audience in audiences_of(groups):
        found = {group.name: epsilon_curve(group, audience) for group in groups if group.has_budget}
        drawn = [group for group in groups if len(found.get(group.name, {})) > 1]
        together = readable(drawn)
        for index, members in enumerate(together):
            ends = "; ".join(f"{g.name}: {list(found[g.name].values())[-1]:.3g} at the end" for g in members)
            title = f"Epsilon for {READERS.get(audience, audience)}"
            panels.append(
                Panel(
                    slug=f"epsilon-{audience}-{index}",
                    title=titled(members, title, is_alone=len(together) > 1),
                    description=f"Spent so far, by round. {ends}.",
                    draw=functools.partial(_draw_spent, groups=members, found=found),
                    height=250,
                )
            )
        shown += [group for group in drawn if group not in shown]
    if not panels:
        return None
    caption = (
        "What each audience could have learned so far. Epsilon depends on the noise, the sampling and the number of "
        "rounds, not on the data, so it is the same for every seed. Lines of equal budgets lie on each other; "
        "their marks stand at different rounds."
    )
    legend = [(group.name, group.style) for group in shown]
    return Drawing(slug="spent", panels=panels, caption=caption, note=simulated(shown), legend=legend)


def _draw_spent(axes: Axes, groups: Sequence[Group], found: Mapping[str, Mapping[int, float]]) -> None:
    """Draw what one audience could have learned after each round."""
    for at, group in enumerate(groups):
        course = found[group.name]
        values = list(course.values())
        # Equal budgets give equal lines: marks at different rounds show every one of them.
        place = len(values) - 1 - at * len(values) // len(groups)
        style = {**line(group.style), "markevery": [place], "markersize": 6.5}
        words = f"{group.name}, round {max(course)}: epsilon {values[-1]:.3g}"
        axes.plot(list(course), values, gid=tip(words), **style)
    most = max(value for group in groups for value in found[group.name].values())
    round_axis(axes, [at for group in groups for at in found[group.name]])
    axes.set(ylabel=epsilon_label(groups), ylim=(0, most * 1.08 or 1.0))


def clients(_: Sequence[FinishedRun], groups: Sequence[Group]) -> Drawing | None:
    """Draw every client's accuracy, a line a group: dots, quartiles, median."""
    panels = []
    has_dots = False
    for score in ("local", "neighbor"):
        values = {group.name: client_values(group, score) for group in groups}
        drawn = [group for group in groups if values[group.name]]
        if not drawn:
            continue
        has_dots |= any(len(values[group.name]) <= MAX_DOTS for group in drawn)
        described = "; ".join(
            f"{name}: from {min(found):.1f} to {max(found):.1f}, median {np.median(found):.1f}"
            for name, found in values.items()
            if found
        )
        panels.append(
            Panel(
                slug=f"clients-{score}",
                title=f"{NAMES[score].capitalize()}, client by client",
                description=f"In percent. {described}.",
                draw=functools.partial(_draw_clients, score=score, groups=drawn, values=values),
                height=72 + 40 * len(drawn),
                margins=(16, 30, 14, 42),
            )
        )
    if not panels:
        return None
    dots = "Each small mark is one client of one seed; its height within a line means nothing. " if has_dots else ""
    caption = (
        f"{dots}The box holds the middle half of the clients, the bar is the median, the thin line reaches from the "
        "worst client to the best."
    )
    return Drawing(slug="clients", panels=panels, caption=caption, note=simulated(groups))


def _draw_clients(axes: Axes, score: str, groups: Sequence[Group], values: Mapping[str, Sequence[float]]) -> None:
    limits = padded([value for group in groups for value in values[group.name]], least=10)
    axes.set(xlabel=f"{NAMES[score]} of a client, %", xlim=limits, ylim=(len(groups) - 0.25, -0.75), yticks=[])
    axes.spines["left"].set_visible(False)
    for at, group in enumerate(groups):
        found = values[group.name]
        low, lower, median, upper, high = np.quantile(found, (0, 0.25, 0.5, 0.75, 1))
        color = group.style.color
        words = f"{group.name}: from {low:.1f} to {high:.1f}, median {median:.1f}"
        axes.hlines(at, low, high, color=color, linewidth=1.4)
        axes.barh(at, max(upper - lower, 0.05), left=lower, height=0.36, color=color, alpha=0.17, gid=tip(words))
        if len(found) <= MAX_DOTS:
            heights = at + 0.018 * (np.arange(len(found)) * 7 % 13 - 6.0)
            axes.plot(found, heights, **{**line(group.style), "linestyle": "", "markersize": 3.5}, alpha=0.62)
        axes.vlines(median, at - 0.24, at + 0.24, color=INK, linewidth=2.4)
        axes.text(limits[0], at - 0.34, group.name, color=color, fontsize=10.5, clip_on=False)


def audiences_of(groups: Sequence[Group]) -> list[str]:
    """Return the audiences that the records name, the known ones first."""
    named = {audience for g in groups for record in g.first.rounds for audience in record.get("epsilon", {})}
    return [who for who in READERS if who in named] + sorted(named - set(READERS))


def epsilon_curve(group: Group, audience: str) -> dict[int, float]:
    """Return the epsilon of an audience after each round that has one on record."""
    found = {
        int(record["round_index"]): number(record.get("epsilon", {}).get(audience)) for record in group.first.rounds
    }
    return {at: value for at, value in found.items() if math.isfinite(value)}


def client_values(group: Group, score: str) -> list[float]:
    """Return a score in percent of every client and seed that has it."""
    values = [100 * number(client.get(score)) for arm in group.arms for client in arm.summary.per_client]
    return [value for value in values if math.isfinite(value)]


def _has_seeds(groups: Iterable[Group]) -> bool:
    """Tell whether a deviation over seeds is drawn for any group."""
    return any(len(group.arms) > 1 for group in groups)


def _family_legend(groups: Sequence[Group]) -> list[tuple[str, Style]]:
    """Return one entry for all budgets of a family, drawn as one curve, and one for each other group."""
    shown: dict[str, Style] = {}
    for members in families(groups):
        points = [group for group in members if group.has_budget]
        shown |= {group.name: group.style for group in members if not group.has_budget}
        if points:
            name = points[0].name if len(points) == 1 else points[0].family
            shown[name] = points[0].style
    return list(shown.items())


def _curve(group: Group, score: str) -> dict[int, list[float]]:
    """Return a score in percent at each round that has one, all seeds together."""
    curve: dict[int, list[float]] = {}
    for arm in group.arms:
        for record in arm.rounds:
            value = 100 * number(record.get(score))
            if math.isfinite(value):
                curve.setdefault(int(record["round_index"]), []).append(value)
    return dict(sorted(curve.items()))


def courses(groups: Sequence[Group]) -> dict[str, str]:
    """Return the scores that the rounds of any group have, with their titles."""
    scores = {"local": "local", "neighbor": "neighbor", **{score: MEASURES[score] for score in ANSWER_SHARES}}
    return {score: title for score, title in scores.items() if any(_curve(group, score) for group in groups)}


def _capital(text: str) -> str:
    """Begin with a capital letter."""
    return text[:1].upper() + text[1:]


def _ends(curve: Curve) -> str:
    """Say where a curve begins and ends."""
    first, last = min(curve), max(curve)
    return f"{np.mean(curve[first]):.1f} in round {first} to {np.mean(curve[last]):.1f} in round {last}"


KINDS: dict[str, Callable[[Sequence[FinishedRun], Sequence[Group]], Drawing | None]] = {
    "curves": curves,
    "budget": budget,
    "clients": clients,
    "confusion": maps.confusion,
    "roc": roc.roc,
    "tradeoff": tradeoff,
    "epsilon": spent,
    "partition": maps.holdings,
}
"""What `hushprompt figure --kind` draws."""

MISSING: dict[str, str] = {
    "curves": "no arm was scored after more than one round (in a federation, scores of rounds stay with the clients).",
    "budget": "no arm with a finite epsilon has scores (in a federation, evaluation.metrics_epsilon tells some).",
    "clients": "the records hold no scores of single clients (in a federation, evaluation.metrics_epsilon tells some).",
    "confusion": (
        "the run folders hold no confusion counts (there are no evaluation images, they are protected or stay with the "
        "clients of a federation, or the runs are from an older version)."
    ),
    "roc": "no run was audited, or no attack in audit/audit.json has a curve.",
    "tradeoff": "no arm has both local and neighbor accuracy (in a federation, nobody sees the others' images).",
    "epsilon": "no arm with a finite epsilon has more than one round.",
    "partition": (
        "the run folders hold no partition.json (they are of a federation, whose clients tell no counts of classes, or "
        "from an older version)."
    ),
}
"""What the records lack where a kind has nothing to draw."""
