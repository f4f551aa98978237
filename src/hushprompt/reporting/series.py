"""Arms of many runs that differ in nothing but the seed, pooled; and how each is named and drawn on the whole page."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hushprompt.config.overrides import label_of, short_names
from hushprompt.reporting.pooling import arm_settings, by_seed
from hushprompt.reporting.runs import Result, Run

NUM_COLORS = 8
NUM_DASHES = 6
BELOW_UNTRAINED = 10.0
"""Points of accuracy below the lowest arm that learns nothing that a figure still shows."""
BUDGET = ("privacy.epsilon", "privacy.noise_multiplier_local", "privacy.noise_multiplier_global")
"""Settings in which the points of one privacy-utility curve may differ."""

Settings = tuple[tuple[str, str], ...]
"""Dotted keys and written values, sorted."""


@dataclass(frozen=True)
class Style:
    """How a series is drawn; color never carries anything alone."""

    color: int | None
    """Index of the color; None: gray, for arms that learn nothing."""
    shape: int
    """Index of the mark."""
    dash: int
    """Index of the line's pattern."""
    is_hollow: bool
    """True where the arm has no guarantee to show: no noise, or nothing private."""


@dataclass(frozen=True)
class Member:
    """One seed of a series."""

    run: Run
    result: Result

    @property
    def rounds(self) -> Sequence[Mapping[str, Any]]:
        """Records of the arm, in order."""
        return self.run.rounds.get(self.result.label, [])


@dataclass(frozen=True)
class Series:
    """An arm of the page: one method at one budget in one setting, over seeds."""

    name: str
    """Unique on the page."""
    family: str
    """Name without the budget; the points of one privacy-utility curve share it."""
    epsilon: float | None
    """Largest over seeds; None where nothing private was used, inf without noise."""
    members: tuple[Member, ...]
    """In order of seeds."""
    style: Style

    @property
    def first(self) -> Member:
        """The member with the smallest seed."""
        return self.members[0]

    @property
    def has_budget(self) -> bool:
        """True if a finite epsilon is proven."""
        return self.epsilon is not None and math.isfinite(self.epsilon)

    @property
    def budget_epsilon(self) -> float:
        """The finite epsilon that is proven; 0 where there is none."""
        return self.epsilon if self.epsilon is not None and math.isfinite(self.epsilon) else 0.0

    @property
    def budget(self) -> str:
        """Name within its family."""
        return self.name.removeprefix(f"{self.family}, ")

    @property
    def learns(self) -> bool:
        """True if the arm was trained."""
        return self.epsilon is not None

    def values(self, score: str) -> list[float]:
        """Return a score in percent for every seed, NaN left out."""
        found = [100 * member.result.scores.get(score, math.nan) for member in self.members]
        return [value for value in found if math.isfinite(value)]


def mean(values: Sequence[float]) -> float:
    """Mean; NaN of nothing."""
    return float(np.mean(values)) if len(values) else math.nan


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds (n - 1 below the line); NaN for fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def with_spread(values: Sequence[float]) -> str:
    """Write a mean and, over several seeds, a standard deviation."""
    return f"{mean(values):.1f}" + (f" ± {spread(values):.1f}" if len(values) > 1 else "")


def lowest_drawn(series: Sequence[Series], score: str) -> float:
    """Return the lowest value that a figure reaches to: somewhat below the lowest arm that learns nothing.

    What noise has ruined lies on the edge; it would otherwise press everything else into one line.
    """
    untrained = [mean(s.values(score)) for s in series if not s.learns and s.values(score)]
    return min(untrained) - BELOW_UNTRAINED if untrained else -math.inf


def families(series: Sequence[Series]) -> list[list[Series]]:
    """Put the members of each family together, in order."""
    found: dict[str, list[Series]] = {}
    for s in series:
        found.setdefault(s.family, []).append(s)
    return list(found.values())


def pool(runs: Sequence[Run]) -> list[Series]:
    """Return the series of all runs: arms with equal settings are one, whichever run they come from.

    Each seed of a series counts once: equal settings and an equal seed give equal results.

    They stay in the order of the first run that has them, with the points of a family beside each other, by epsilon.
    """
    members = by_seed(
        (tuple(sorted(settings(run, index).items())), run.seed, Member(run, result))
        for run in runs
        for index, result in enumerate(run.results)
    )
    curves: dict[Settings, list[tuple[Settings, tuple[Member, ...]]]] = {}
    for key, seeds in members.items():
        family = tuple(entry for entry in key if entry[0] not in BUDGET)
        curves.setdefault(family, []).append((key, tuple(same[0] for same in seeds.values())))
    names = _names(list(curves), [points[0][1][0].result.title for points in curves.values()])
    series: list[Series] = []
    for index, (name, points) in enumerate(zip(names, curves.values(), strict=True)):
        ordered = sorted(points, key=lambda point: _epsilon(point[1]) or 0.0)
        budgets = [budget_text(_epsilon(of_seeds)) for _, of_seeds in ordered]
        extra = _names([key for key, _ in ordered], budgets)
        series.extend(
            _series(name, suffix, of_seeds, index, dash)
            for dash, (suffix, (_, of_seeds)) in enumerate(zip(extra, ordered, strict=True))
        )
    return _with_colors(series)


def settings(run: Run, index: int) -> dict[str, str]:
    """Return what decides an arm's result, but the seed, as dotted keys: the run's config with the arm's own method."""
    references = run.config.get("references", [])
    is_reference = index < len(references) == len(run.results) - 1
    result = run.results[index]
    decisive = arm_settings(
        run.config, references[index] if is_reference else {}, is_trained=result.epsilon is not None
    )
    return {"arm's method": result.method, **{key: label_of(value) for key, value in decisive.items()}}


def budget_text(epsilon: float | None) -> str:
    """Name a budget in a few letters.

    >>> budget_text(2.0), budget_text(math.inf), budget_text(None)
    ('ε 2', 'no noise', '')
    """
    if epsilon is None:
        return ""
    return "no noise" if math.isinf(epsilon) else f"ε {epsilon:.3g}"


def _epsilon(members: Sequence[Member]) -> float | None:
    """Largest epsilon of the seeds."""
    return max((m.result.epsilon for m in members if m.result.epsilon is not None), default=None)


def _series(family: str, suffix: str, members: tuple[Member, ...], index: int, dash: int) -> Series:
    """Make one series; its color comes later."""
    epsilon = _epsilon(members)
    is_hollow = epsilon is None or math.isinf(epsilon)
    style = Style(color=None, shape=index, dash=dash % NUM_DASHES, is_hollow=is_hollow)
    return Series(f"{family}, {suffix}" if suffix else family, family, epsilon, members, style)


def _with_colors(series: list[Series]) -> list[Series]:
    """Return each family that learns a color of its own, as far as they go round."""
    learning = dict.fromkeys(s.family for s in series if s.learns)
    # Shapes go round as well: each time around, colors move on by one, so that no two families share both.
    colors = {family: (index + index // NUM_COLORS) % NUM_COLORS for index, family in enumerate(learning)}
    return [
        dataclasses.replace(s, style=dataclasses.replace(s.style, color=colors[s.family])) if s.learns else s
        for s in series
    ]


def _names(keys: Sequence[Settings], titles: Sequence[str]) -> list[str]:
    """Return each key its title and, where titles repeat, the settings in which it differs from its namesakes.

    A word that is the commonest of its setting goes without saying, so that an ablation is named by what it changes.
    """
    names = []
    for key, title in zip(keys, titles, strict=True):
        others = [dict(other) for other, same in zip(keys, titles, strict=True) if same == title and other != key]
        mine = dict(key)
        differing = sorted(
            name
            for name in {*mine, *(name for other in others for name in other)}
            if any(mine.get(name) != other.get(name) for other in others)
        )
        short = short_names(differing)
        told = [name for name in differing if name in mine and not _is_usual(name, mine, others)]
        words = [f"{short[name].replace('_', ' ')} {mine[name]}" for name in told]
        names.append(", ".join([title, *words] if title else words))
    return names


def _is_usual(name: str, mine: Mapping[str, str], others: Sequence[Mapping[str, str]]) -> bool:
    """Tell whether a setting is a word here, and that word is commoner among namesakes than any other."""
    if any(name not in other for other in others) or re.fullmatch(r"-?[\d.]+(e-?\d+)?|inf", mine[name]):
        return False
    (first, count), *rest = Counter([mine[name], *(other[name] for other in others)]).most_common(2)
    return mine[name] == first and all(count > second for _, second in rest)
