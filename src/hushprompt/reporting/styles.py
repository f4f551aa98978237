"""How groups are named and drawn: unique names, and marks and lines that need no color to be told apart."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hushprompt.config.overrides import label_of, short_names

COLORS = ("#1f5fbf", "#b4500f", "#157347", "#9c2a76", "#0a7286", "#776300", "#6545bd", "#b02020")
GRAY = "#666c75"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 2)), (0, (6, 2, 1.5, 2)), (0, (9, 3)), (0, (4, 2, 1, 2, 1, 2)))
BUDGET = ("privacy.epsilon", "privacy.noise_multiplier_local", "privacy.noise_multiplier_global")
"""Settings in which the points of one privacy-utility curve may differ."""

UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""Characters that no HTML or XML document may hold."""

Settings = Mapping[str, str]
"""Written values by dotted key."""


@dataclass(frozen=True)
class Style:
    """How a group is drawn; color never carries anything alone."""

    color: str
    """Gray for arms that learn nothing."""
    marker: str
    dash: Any
    """Line pattern, as matplotlib takes it."""
    is_hollow: bool
    """True where the arm has no guarantee to show: no noise, or nothing private."""


def named(
    settings: Sequence[Mapping[str, Any]], titles: Sequence[tuple[str, float | None]]
) -> list[tuple[str, str, Style]]:
    """Return name, family and style of each group.

    Args:
        settings: by dotted key, of each group.
        titles: its method's title and its proven epsilon.
    """
    written = [{key: label_of(value) for key, value in each.items()} for each in settings]
    families: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for index, each in enumerate(written):
        family = tuple(sorted((key, value) for key, value in each.items() if key not in BUDGET))
        families.setdefault(family, []).append(index)
    names = _names([dict(family) for family in families], [printable(titles[same[0]][0]) for same in families.values()])
    colors = _colors([any(titles[index][1] is not None for index in same) for same in families.values()])
    found: dict[int, tuple[str, str, Style]] = {}
    for at, (family_name, color, same) in enumerate(zip(names, colors, families.values(), strict=True)):
        ordered = sorted(same, key=lambda index: titles[index][1] or 0.0)
        budgets = _names([written[index] for index in ordered], [budget_text(titles[index][1]) for index in ordered])
        for dash, (index, budget) in enumerate(zip(ordered, budgets, strict=True)):
            epsilon = titles[index][1]
            style = Style(
                color=GRAY if epsilon is None else color,
                marker=MARKERS[at % len(MARKERS)],
                dash=DASHES[dash % len(DASHES)] if epsilon is not None else (0, (2, 4)),
                is_hollow=epsilon is None or math.isinf(epsilon),
            )
            found[index] = (f"{family_name}, {budget}" if budget else family_name, family_name, style)
    return [found[index] for index in range(len(settings))]


def printable(text: str) -> str:
    """Replace the characters that no HTML or XML document may hold."""
    return UNSAFE.sub("\ufffd", text)


def budget_text(epsilon: float | None) -> str:
    """Name a budget in a few letters.

    >>> budget_text(2.0), budget_text(math.inf), budget_text(None)
    ('ε 2', 'no noise', '')
    """
    if epsilon is None:
        return ""
    return "no noise" if math.isinf(epsilon) else f"ε {epsilon:.3g}"


def _colors(learn: Sequence[bool]) -> list[str]:
    """Return each family that learns a color of its own, as far as they go round, and gray to the others."""
    colors, count = [], 0
    for learns in learn:
        # Markers go round as well: each time around, colors move on by one, so that no two families share both.
        colors.append(COLORS[(count + count // len(COLORS)) % len(COLORS)] if learns else GRAY)
        count += learns
    return colors


def _names(keys: Sequence[Settings], titles: Sequence[str]) -> list[str]:
    """Return for each its title and, where titles repeat, the settings in which it differs from its namesakes.

    A word that is the commonest of its setting goes without saying, so that an ablation is named by what it changes.
    """
    names = []
    for mine, title in zip(keys, titles, strict=True):
        others = [other for other, same in zip(keys, titles, strict=True) if same == title and other != mine]
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


def _is_usual(name: str, mine: Settings, others: Sequence[Settings]) -> bool:
    """Tell whether a setting is a word here, and that word is commoner among namesakes than any other."""
    if any(name not in other for other in others) or re.fullmatch(r"-?[\d.]+(e-?\d+)?|inf", mine[name]):
        return False
    (first, count), *rest = Counter([mine[name], *(other[name] for other in others)]).most_common(2)
    return mine[name] == first and all(count > second for _, second in rest)
