"""Which rows of finished runs are one: those whose settings are the same but for the seed. One rule for all views."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from hushprompt.config.settings import flat

Key = TypeVar("Key", bound=Hashable)
Row = TypeVar("Row")

UNSEEN = ("seed", "runtime", "references", "data.download", "evaluation.every")
"""Settings that tell no two rows apart: the seed is what is averaged over, the rest never changes a row's result."""
TRAINING = ("sampling", "training", "privacy")
"""Sections that mean nothing to a method that learns nothing."""


def row_settings(config: Mapping[str, Any], reference: Mapping[str, Any], *, is_trained: bool) -> dict[str, Any]:
    """Return a row's settings by dotted key, without the seed: the run's, changed as its reference says.

    Args:
        config: tables of a `config.toml`.
        reference: the row's entry in `references`; empty for the method itself.
        is_trained: whether the row learns anything.
    """
    values = {**config, "method": reference.get("method", config.get("method"))}
    epsilon = reference.get("epsilon", "none")
    if epsilon != "none":
        multipliers = dict.fromkeys(("noise_multiplier_local", "noise_multiplier_global"), "none")
        values["privacy"] = {**config.get("privacy", {}), **multipliers, "epsilon": epsilon}
    unseen = UNSEEN if is_trained else (*UNSEEN, *TRAINING)
    return {key: value for key, value in flat(values).items() if not is_below(key, unseen)}


def by_seed(rows: Iterable[tuple[Key, int, Row]]) -> dict[Key, dict[int, list[Row]]]:
    """Put rows together by what decides them and then by seed: keys in order of appearance, seeds sorted.

    >>> by_seed([("a", 2, "x"), ("b", 1, "y"), ("a", 1, "z")])
    {'a': {1: ['z'], 2: ['x']}, 'b': {1: ['y']}}
    """
    found: dict[Key, dict[int, list[Row]]] = {}
    for key, seed, row in rows:
        found.setdefault(key, {}).setdefault(seed, []).append(row)
    return {key: dict(sorted(seeds.items())) for key, seeds in found.items()}


def is_below(key: str, keys: Sequence[str]) -> bool:
    """Tell whether a dotted key is one of `keys`, or lies in one of them.

    >>> is_below("data.root", ["data"]), is_below("database", ["data"])
    (True, False)
    """
    return any(key == other or key.startswith(f"{other}.") for other in keys)
