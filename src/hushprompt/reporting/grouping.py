"""Arms that differ only in the seed are one group; groups may stand in one table only where they can be compared."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hushprompt import checks
from hushprompt.config.overrides import label_of
from hushprompt.errors import ConfigError, DataError
from hushprompt.reporting.pooling import by_seed, is_below
from hushprompt.reporting.results import Result

SCORES = ("local", "neighbor", "harmonic_mean", "worst_client")
INCOMPARABLE = (
    "data", "evaluation", "privacy.delta", "privacy.audience", "privacy.neighboring_relation", "privacy.privacy_unit",
)  # fmt: skip
"""Settings that give a number, or its epsilon, another meaning; where one differs, each needs a table of its own."""
SAME_CLIENTS = ("backbone", "data", "evaluation", "features", "partition")
"""Settings under which equal seeds have equal clients, images and model."""
METHOD, EPSILON = "method.name", "privacy.epsilon"


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; NaN of one seed."""

    mean: float
    std: float


@dataclass(frozen=True)
class Group:
    """Arms that differ in the seed alone."""

    results: tuple[Result, ...]
    """Sorted by seed, each seed once."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What all have in common."""
        return self.results[0].settings

    @property
    def title(self) -> str:
        """The method, as a table calls it."""
        return self.results[0].summary.title

    @property
    def epsilon(self) -> float | None:
        """Proven epsilon, the largest over seeds; None where nothing private was used."""
        values = [result.summary.epsilon for result in self.results]
        return None if None in values else max(value for value in values if value is not None)

    def by_seed(self, score: str) -> dict[int, float]:
        """Return a score of every seed, as a fraction."""
        return {result.summary.seed: float(getattr(result.summary, score)) for result in self.results}

    def spread(self, score: str) -> Spread:
        """Return mean and standard deviation of a score over seeds."""
        values = list(self.by_seed(score).values())
        return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan)

    def label(self, key: str) -> str:
        """Write what a setting is here; "-" where there is none."""
        return label_of(self.settings[key]) if key in self.settings else "-"


def group(results: Iterable[Result], ignore: Sequence[str] = ()) -> list[Group]:
    """Put arms together whose settings are the same, in order of appearance.

    Args:
        results: the arms.
        ignore: dotted keys or sections that are not looked at.

    Raises:
        DataError: two runs of the same settings and seed have other results.
    """
    kept = [
        dataclasses.replace(
            result, settings={key: value for key, value in result.settings.items() if not is_below(key, ignore)}
        )
        for result in results
    ]
    found = by_seed((json.dumps(each.settings, sort_keys=True), each.summary.seed, each) for each in kept)
    for seeds in found.values():
        for first, *others in seeds.values():
            for other in others:
                _check_same(first, other)
    return [Group(tuple(same[0] for same in seeds.values())) for seeds in found.values()]


def split(groups: Sequence[Group], by: Sequence[str]) -> list[tuple[str, list[Group]]]:
    """Make one table for each value of the settings `by`, dotted keys or sections; give a title for each.

    Arms that have none of these settings, such as those that learn nothing and have no budget, go into every table.

    Raises:
        ConfigError: no group has such a setting.
    """
    known = sorted({key for each in groups for key in each.settings})
    keys = [key if any(is_below(other, [key]) for other in known) else find_key(key, known) for key in by]
    separating = [key for key in varying(groups) if is_below(key, keys) and len(_values(groups, key)) > 1]
    titles = [_title(each, separating) for each in groups]
    tables = [title for title in dict.fromkeys(titles) if title] or [""]
    return [
        (table, [each for each, title in zip(groups, titles, strict=True) if title in (table, "")]) for table in tables
    ]


def find_key(text: str, keys: Sequence[str]) -> str:
    """Return the dotted key that a whole key or its last parts name.

    Raises:
        ConfigError: none does, or several do.

    >>> find_key("rank", ["method.rank", "privacy.epsilon"])
    'method.rank'
    """
    found = [key for key in keys if key == text or key.endswith(f".{text}")]
    if text in found or len(found) == 1:
        return text if text in found else found[0]
    known = ", ".join(keys)
    raise ConfigError(
        f"{text!r} names {'several settings' if found else 'no setting'} of these arms; known: {known}."
        f"{checks.nearest(text, keys)}"
    )


def check_comparable(groups: Sequence[Group]) -> None:
    """Refuse a table whose numbers do not mean the same.

    Raises:
        ConfigError: groups differ in what is measured or in what epsilon means; the message says in what.
    """
    differing = {key: _values(groups, key) for key in varying(groups) if is_below(key, INCOMPARABLE)}
    differing = {key: values for key, values in differing.items() if len(values) > 1}
    if differing:
        words = "; ".join(f"{key}: {', '.join(values)}" for key, values in differing.items())
        options = " ".join(dict.fromkeys(f"--by {_meaning(key)}" for key in differing))
        raise ConfigError(
            f"These arms cannot stand in one table, since their numbers do not mean the same ({words}). Make a table "
            f"for each with {options}, or give fewer runs. --ignore KEY says that a difference is none."
        )


def varying(groups: Sequence[Group]) -> list[str]:
    """Return the settings that are not the same in all groups, sorted; one that a group lacks is not the same."""
    keys = sorted({key for each in groups for key in each.settings})
    return [key for key in keys if len({each.label(key) for each in groups}) > 1]


def shown(groups: Sequence[Group]) -> list[str]:
    """Return the settings, beside method and epsilon, that a table must show to tell its groups apart.

    Settings that go with method and epsilon, such as a learning rate for each method, tell nothing apart; `companions`.
    """
    needed: set[str] = set()
    for first, one in enumerate(groups):
        for other in groups[first + 1 :]:
            if all(one.label(key) == other.label(key) for key in (METHOD, EPSILON)):
                needed |= set(varying([one, other]))
    return sorted(needed - {key for key in needed if _is_field_of_choice(key, needed)})


def companions(groups: Sequence[Group]) -> list[str]:
    """Return the settings that vary along with method, epsilon and what is shown."""
    hidden = [key for key in varying(groups) if key not in {METHOD, EPSILON, *shown(groups)}]
    return [key for key in hidden if len(_values(groups, key)) > 1]


def same_clients(one: Group, other: Group) -> bool:
    """Tell whether equal seeds mean equal clients in both groups."""
    return not [key for key in varying([one, other]) if is_below(key, SAME_CLIENTS)]


def _check_same(one: Result, other: Result) -> None:
    """Refuse other results of the same settings and seed."""
    if any(abs(getattr(one.summary, score) - getattr(other.summary, score)) > 1e-9 for score in SCORES):
        raise DataError(
            f"{one.folder} and {other.folder} have an arm with the same settings and seed but other results "
            f"(hushprompt {one.provenance.get('hushprompt')}, {other.provenance.get('hushprompt')}; arm "
            f"{other.summary.arm!r}). Leave one of them out."
        )


def _values(groups: Sequence[Group], key: str) -> list[str]:
    """Return the different values of a setting where there is one."""
    return list(dict.fromkeys(each.label(key) for each in groups if key in each.settings))


def _title(group: Group, keys: Sequence[str]) -> str:
    """Say what a group has of some settings."""
    return ", ".join(f"{key} = {group.label(key)}" for key in keys if key in group.settings)


def _meaning(key: str) -> str:
    """Return the part of INCOMPARABLE that a key lies in."""
    return next(part for part in INCOMPARABLE if is_below(key, [part]))


def _is_field_of_choice(key: str, keys: set[str]) -> bool:
    """Tell whether a setting is a field of a section whose `name` differs as well, which says enough."""
    section = key.partition(".")[0]
    return f"{section}.name" in keys and key != f"{section}.name"
