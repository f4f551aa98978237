"""Which arms of finished runs are one: those whose settings are the same but for the seed. One rule for all views."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from hushprompt.config.overrides import flat

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")

UNSEEN = ("seed", "runtime", "references", "data.download", "evaluation.every")
"""Settings that tell no two arms apart: the seed is what is averaged over, the rest never changes an arm's result."""
TRAINING = ("sampling", "training", "privacy")
"""Sections that mean nothing to a method that learns nothing."""


def arm_settings(config: Mapping[str, Any], reference: Mapping[str, Any], *, is_trained: bool) -> dict[str, Any]:
    """Return an arm's settings by dotted key, without the seed: the run's, changed as its reference says.

    Args:
        config: tables of a `config.toml`.
        reference: the arm's entry in `references`; empty for the method itself.
        is_trained: whether the arm learns anything.
    """
    values = {**config, "method": reference.get("method", config.get("method"))}
    epsilon = reference.get("epsilon", "none")
    if epsilon != "none":
        multipliers = dict.fromkeys(("noise_multiplier_local", "noise_multiplier_global"), "none")
        values["privacy"] = {**config.get("privacy", {}), **multipliers, "epsilon": epsilon}
    unseen = UNSEEN if is_trained else (*UNSEEN, *TRAINING)
    return {key: value for key, value in flat(values).items() if not is_below(key, unseen)}


def by_seed(arms: Iterable[tuple[Key, int, Item]]) -> dict[Key, dict[int, list[Item]]]:
    """Put arms together by what decides them and then by seed: keys in order of appearance, seeds sorted.

    >>> by_seed([("a", 2, "x"), ("b", 1, "y"), ("a", 1, "z")])
    {'a': {1: ['z'], 2: ['x']}, 'b': {1: ['y']}}
    """
    found: dict[Key, dict[int, list[Item]]] = {}
    for key, seed, arm in arms:
        found.setdefault(key, {}).setdefault(seed, []).append(arm)
    return {key: dict(sorted(seeds.items())) for key, seeds in found.items()}


def is_below(key: str, keys: Sequence[str]) -> bool:
    """Tell whether a dotted key is one of `keys`, or lies in one of them.

    >>> is_below("data.root", ["data"]), is_below("database", ["data"])
    (True, False)
    """
    return any(key == other or key.startswith(f"{other}.") for other in keys)
