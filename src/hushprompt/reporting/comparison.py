"""Groups side by side: their order, what tells them apart, and the tests against one of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hushprompt.errors import ConfigError
from hushprompt.evaluation import significance
from hushprompt.evaluation.significance import Difference, Test
from hushprompt.reporting import tables
from hushprompt.reporting.pooling import (
    EPSILON,
    METHOD,
    SCORES,
    Group,
    check_comparable,
    find_key,
    measured,
    pool_strictly,
    same_clients,
    shown,
    split,
)
from hushprompt.runs import reader


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Groups in one table, and the tests against one of them."""

    title: str
    """What sets this table apart from others of the same command; may be empty."""
    groups: tuple[Group, ...]
    """In the order of the table."""
    columns: tuple[str, ...]
    """Dotted keys shown beside method and epsilon."""
    against: str
    """What `references` were asked for by; empty where nothing is tested."""
    references: Mapping[int, int]
    """Which group (by position) each group is compared with."""
    differences: Mapping[str, Mapping[int, tuple[Difference, float | None]]]
    """By score and position: the difference, and its p corrected over the rows."""
    test: Test
    notes: tuple[str, ...]


def of_runs(
    paths: Sequence[Path], *, by: Sequence[str], against: str | None, test: Test, ignore: Sequence[str]
) -> list[Comparison]:
    """Compare all runs at or below some paths, with a comparison for each value of the settings `by`.

    Raises:
        DataError: a path holds no finished run, or two runs contradict each other.
        ConfigError: see `compare` and `pooling.split`.
    """
    found = reader.find(paths)
    groups = pool_strictly(found.runs, ignore)
    return [compare(title, same, against=against, test=test, notes=found.notes) for title, same in split(groups, by)]


def compare(
    title: str, groups: Sequence[Group], *, against: str | None, test: Test, notes: Sequence[str] = ()
) -> Comparison:
    """Order the groups, find what tells them apart, and test them.

    Args:
        title: what sets this table apart.
        groups: rows that differ in the seed alone.
        against: the row to compare with, such as "promptfl" or "method=dp_fpl,rank=1"; where several match, each row
            is compared with the one that agrees with it in all other columns that both have. None: no tests.
        test: see `significance.compare`.
        notes: sentences about the runs.

    Raises:
        ConfigError: the groups are not comparable, or `against` names no row.
    """
    check_comparable(groups)
    columns = tuple(shown(groups))
    ordered = tuple(_ordered(groups, columns))
    references = {} if against is None else _references(ordered, columns, against)
    return Comparison(
        title=title,
        groups=ordered,
        columns=columns,
        against=against or "",
        references=references,
        differences={score: _differences(ordered, references, score, test) for score in (*SCORES, *measured(groups))},
        test=test,
        notes=tuple(notes),
    )


def _ordered(groups: Sequence[Group], columns: Sequence[str]) -> list[Group]:
    """Sort by method, untrained ones first and else as they appeared, then by what is shown, then by epsilon."""
    methods = list(dict.fromkeys(group.settings[METHOD] for group in groups))
    orders = {
        key: in_order([group.label(key) for group in groups], is_descending=key == EPSILON)
        for key in (*columns, EPSILON)
    }
    return sorted(
        groups,
        key=lambda group: (
            group.epsilon is not None,  # what costs no privacy comes first
            methods.index(group.settings[METHOD]),
            [order.index(group.label(key)) for key, order in orders.items()],
        ),
    )


def _references(groups: Sequence[Group], columns: Sequence[str], against: str) -> dict[int, int]:
    """Find for each group the one to compare it with."""
    wanted = [_condition(groups, part.strip()) for part in against.split(",")]
    chosen = [at for at, group in enumerate(groups) if all(matches(group) for matches in wanted)]
    if not chosen:
        names = ", ".join(dict.fromkeys(str(group.settings[METHOD]) for group in groups))
        raise ConfigError(f"--against {against}: no row is that. Name a method ({names}) or settings, as in rank=8.")
    found = {}
    for at, group in enumerate(groups):
        partners = chosen
        if len(chosen) > 1:
            partners = [other for other in chosen if _agree(group, groups[other], columns)]
        partners = [other for other in partners if other != at]
        if len(partners) == 1 and at not in chosen and same_clients(group, groups[partners[0]]):
            found[at] = partners[0]
    return found


def _condition(groups: Sequence[Group], part: str) -> Callable[[Group], bool]:
    """Read one part of --against: a method's name or title, or KEY=VALUE."""
    key, equals, value = part.partition("=")
    if not equals:
        return lambda group: part in (group.settings[METHOD], group.title)
    known = sorted({known for group in groups for known in group.settings})
    full = METHOD if key == "method" else find_key(key, known)
    return lambda group: group.label(full) == value.strip()


def _agree(one: Group, other: Group, columns: Sequence[str]) -> bool:
    """Tell whether two groups have the same proven epsilon, and the same of what is shown, where both have it."""
    pairs = [{tables.epsilon_text(one.epsilon), tables.epsilon_text(other.epsilon)}]
    pairs += [{one.label(key), other.label(key)} for key in columns]
    return all("-" in pair or len(pair) == 1 for pair in pairs)


def _differences(
    groups: Sequence[Group], references: Mapping[int, int], score: str, test: Test
) -> dict[int, tuple[Difference, float | None]]:
    """Test every group against its reference, seed by seed, and correct for the number of tests."""
    found: dict[int, Difference] = {}
    for at, reference in references.items():
        mine, theirs = groups[at].by_seed(score), groups[reference].by_seed(score)
        pairs = [mine[seed] - theirs[seed] for seed in mine if seed in theirs]
        pairs = [pair for pair in pairs if not math.isnan(pair)]
        if pairs:
            found[at] = significance.compare(pairs, test)
    corrected = significance.holm([difference.p for difference in found.values()])
    return {at: (difference, p) for (at, difference), p in zip(found.items(), corrected, strict=True)}


def in_order(labels: Sequence[str], *, is_descending: bool) -> list[str]:
    """Sort different labels: nothing, then numbers by size, then words as they come.

    >>> in_order(["2", "svd", "inf", "10", "-", "a"], is_descending=True)
    ['-', 'inf', '10', '2', 'svd', 'a']
    """
    sign = -1 if is_descending else 1

    def place(label: str) -> tuple[int, float]:
        if label == "-":
            return 0, 0.0
        try:
            return 1, sign * float(label)
        except ValueError:
            return 2, 0.0

    return sorted(dict.fromkeys(labels), key=place)
