"""What figures share: axes of rounds and epsilons, and how far they reach."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from hushprompt.privacy.statements import beside_epsilon
from hushprompt.reporting.drawing import line, tip
from hushprompt.reporting.pooling import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_TOGETHER = 8
"""More lines than this get a panel for each family."""
BELOW_UNTRAINED = 10.0
"""Points of accuracy below the lowest arm that learns nothing that a figure still shows."""


def epsilon_label(groups: Sequence[Group]) -> str:
    """Name an axis of epsilons."""
    sources = {group.noise_source for group in groups if group.has_budget}
    return f"epsilon{beside_epsilon(sources.pop())}" if len(sources) == 1 else "epsilon"


def budget_of(group: Group) -> float:
    """Return the finite epsilon that is proven; 0 where there is none."""
    return group.epsilon if group.epsilon is not None and math.isfinite(group.epsilon) else 0.0


def mean_of(group: Group, score: str) -> float:
    """Return the mean over seeds in percent."""
    return 100 * group.spread(score).mean


def families(groups: Iterable[Group]) -> list[list[Group]]:
    """Put the members of each family together, in order."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.family, []).append(group)
    return list(found.values())


def lowest_drawn(groups: Sequence[Group], score: str) -> float:
    """Return the lowest value that a figure reaches to: somewhat below the lowest arm that learns nothing.

    What noise has ruined lies on the edge; it would otherwise press everything else into one line.
    """
    untrained = [mean_of(group, score) for group in groups if not group.learns and group.percents(score)]
    return min(untrained) - BELOW_UNTRAINED if untrained else -math.inf


def padded(values: Sequence[float], *, least: float) -> tuple[float, float]:
    """Return limits around percentages, at least `least` wide, with a margin, inside [0, 100].

    >>> padded([40.0, 60.0], least=10.0)
    (38.0, 62.0)
    """
    low, high = min(values), max(values)
    missing = max(least - (high - low), 0.0) / 2
    margin = 0.1 * max(high - low, least)
    return max(low - missing - margin, -0.5), min(high + missing + margin, 100.5)


def draw_level(axes: Axes, group: Group, value: float, low: float) -> None:
    """Draw a group that has no place on the horizontal axis as a level line, with its mark at the end."""
    style = {**line(group.style), "markevery": [1], "markersize": 6, "linewidth": 1.5}
    axes.plot(axes.get_xlim(), [max(value, low)] * 2, gid=tip(f"{group.name}: {value:.1f}"), clip_on=False, **style)


def round_axis(axes: Axes, rounds: Sequence[int]) -> None:
    """Make the horizontal axis one of rounds."""
    from matplotlib.ticker import MaxNLocator

    low, high = min(rounds), max(rounds)
    axes.set(xlabel="round", xlim=(low, high + 0.04 * (high - low)))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def epsilon_ticks(axes: Axes, epsilons: Sequence[float]) -> None:
    """Write round values of epsilon as they are, not as powers of ten."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    own = sorted({float(f"{epsilon:.2g}") for epsilon in epsilons})
    span = math.log(axes.get_xlim()[1] / axes.get_xlim()[0])
    if len(own) <= 6 and all(math.log(high / low) > span / 12 for low, high in itertools.pairwise(own)):
        axes.xaxis.set_major_locator(FixedLocator(own))
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if own[-1] / own[0] > 30 else (1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def readable(drawn: Sequence[Group]) -> list[list[Group]]:
    """Keep all groups together while a reader can follow them, else give each family a panel of its own."""
    if not drawn:
        return []
    return [list(drawn)] if len(drawn) <= MAX_TOGETHER else families(drawn)


def titled(members: Sequence[Group], title: str, *, is_alone: bool) -> str:
    """Name a panel, and the family that it has to itself."""
    return f"{members[0].family}: {title[:1].lower()}{title[1:]}" if is_alone else title


def on_the_edge(groups: Sequence[Group], score: str) -> str:
    """Name the groups that are so far below those that learn nothing that a figure has them on its edge."""
    low = lowest_drawn(groups, score)
    names = [f"{group.name} ({mean_of(group, score):.1f})" for group in groups if mean_of(group, score) < low]
    return f" On the lower edge, because they lie below it: {', '.join(names)}." if names else ""
