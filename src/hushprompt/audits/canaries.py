"""One run with mislabelled images of one client: a lower bound on epsilon of the whole system, end to end.

Some of the client's examples, or of its groups where these are the unit, get a wrong label and are in or out by a fair
coin each; everything else is trained as always. Where examples have questions they get a made-up answer, digits at
random. The auditor sees what an audience sees and guesses the coins (Steinke, Nasr, Jagielski 2023, arXiv:2305.08846).
A wrong label is a strong canary: its gradient is large and points where no other example's does. Every canary has two
scores: what the last prompt says of it, and the likelihood ratio of all releases on the way (`likelihood.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hushprompt import checks
from hushprompt.audits.lower_bounds import CONFIDENCE
from hushprompt.audits.mechanism_audit import AuditResult, Bound, best_guesses
from hushprompt.audits.world import Candidates, World, audiences, start
from hushprompt.errors import ConfigError
from hushprompt.methods.base import OneRelease
from hushprompt.privacy.config import Audience
from hushprompt.runs.arm import Arm
from hushprompt.seeding import stream
from hushprompt.words import counted

BELIEF = {Audience.PUBLIC: "global prompt", Audience.PERSONAL: "personal prompt"}
"""Prompts that an audience is asked about the wrong label or answer, in words."""
NUM_DIGITS = 6
"""Digits of a made-up answer, each a token of its own."""
RELEASES = {Audience.PUBLIC: "all releases", Audience.PERSONAL: "all releases", Audience.SERVER: "all that it received"}
"""What an audience saw on the way."""


@dataclass(frozen=True, kw_only=True)
class CanaryAudit:
    """The bound that one score gives."""

    sees: str
    result: AuditResult
    mean_gap: float
    """Mean score of the canaries that were in minus that of those out, in standard deviations; power at a glance."""


def with_canaries(world: World, num_canaries: int, *, of_declared: bool = False) -> World:
    """Return the same federation with some of the client's examples, or groups, mislabelled; they are the candidates.

    Questions get made-up answers, all of a group the same.

    Args:
        world: to be changed.
        num_canaries: how many examples, or groups where these are the unit.
        of_declared: whether wrong labels are classes that the client is declared to have: releases class by class have
            no other rows.

    Raises:
        ConfigError: the client has fewer examples, or one class alone.
    """
    checks.positive(num_canaries=num_canaries)
    own = world.candidates
    if num_canaries > own.num_coins:
        unit = "example" if own.groups is None else "group"
        raise ConfigError(
            f"--canaries must be at most the {counted(own.num_coins, unit)} of client {own.client_id}, got "
            f"{num_canaries}."
        )
    rng = stream(world.config.seed, "canaries")
    coins = np.sort(rng.permutation(own.num_coins)[:num_canaries])
    chosen = coins if own.groups is None else np.flatnonzero(np.isin(own.groups, coins))
    groups = None if own.groups is None else np.searchsorted(coins, own.groups[chosen])
    if own.texts is not None:
        made_up = [" ".join(map(str, digits)) for digits in rng.integers(10, size=(num_canaries, NUM_DIGITS))]
        owners = range(num_canaries) if groups is None else groups.tolist()
        return world.with_answers(chosen, [made_up[owner] for owner in owners], groups)
    classes = _classes(world) if of_declared else np.arange(world.federation.model.num_classes)
    shift = rng.integers(1, len(classes), size=num_canaries)
    shift = shift if groups is None else shift[groups]
    wrong = classes[(np.searchsorted(classes, own.labels[chosen]) + shift) % len(classes)]
    return dataclasses.replace(world, candidates=Candidates(own.client_id, own.indices[chosen], wrong, groups))


def _classes(world: World) -> Int[np.ndarray, " c"]:
    """Return the classes that the client may publicly have, at least two."""
    everything = range(world.federation.model.num_classes)
    classes = np.array(sorted(everything if world.declared is None else world.declared))
    if len(classes) < 2:
        raise ConfigError("A client that has one class alone can have no wrong label. Add --canaries 0.")
    return classes


def train_canaries(world: World, arm: Arm, num_canaries: int) -> dict[str, Tensor]:
    """Train once, and give the coins and each score of the canaries by name."""
    audited = with_canaries(world, num_canaries, of_declared=isinstance(arm.method, OneRelease))
    is_in = stream(world.config.seed, "canary inclusion").random(num_canaries) < 0.5
    seed = int(stream(world.config.seed, "canary seed").integers(2**62))
    state, watch = audited.train(arm, is_in, seed, judges=True)
    first = start(world.config, world.federation, arm)
    kept = {"is_in": torch.from_numpy(is_in)}
    targets, examples = torch.from_numpy(audited.candidates.targets)[:, None], audited.examples
    for audience in audiences(arm):
        if audience in BELIEF:
            before, after = (audited.log_probs(arm, which, audience, examples).cpu() for which in (first, state))
            # How much more the trained prompt believes the wrong label or answer than the public start does.
            moved = (after.gather(1, targets) - before.gather(1, targets))[:, 0]
            kept[str(audience)] = audited.candidates.by_coin(moved)
        judged = watch.scores(audience)
        if judged is not None:
            kept[f"{audience}.releases"] = torch.from_numpy(judged)
    return kept


def canary_audits(
    kept: Mapping[str, Tensor], audience: Audience, delta: float, bound: Bound = "one_run"
) -> list[CanaryAudit]:
    """Bound epsilon by every score that an audience has; together they hold with 95 %.

    Args:
        kept: from `train_canaries`, or from federations of `client_canaries.py` one after the other.
        audience: who guesses.
        delta: of the claim.
        bound: theorem that turns right guesses into epsilon.
    """
    is_in = kept["is_in"].numpy().astype(bool)
    if is_in.all() or not is_in.any():
        raise ConfigError("All canaries fell on one side. Use more --canaries.")
    named = {f"{audience}.releases": RELEASES[audience], str(audience): BELIEF.get(audience)}
    mine = {name: str(sees) for name, sees in named.items() if name in kept}
    found = []
    for name, sees in mine.items():
        scores, share = kept[name].double().numpy(), 1 - (1 - CONFIDENCE) / len(mine)
        is_ratio = name.endswith(".releases")
        result = best_guesses(scores, is_in, delta=delta, confidence=share, bound=bound, is_ratio=is_ratio)
        gap = (scores[is_in].mean() - scores[~is_in].mean()) / max(_spread(scores, is_in), 1e-12)
        result = dataclasses.replace(result, confidence=CONFIDENCE)
        found.append(CanaryAudit(sees=sees, result=result, mean_gap=float(gap)))
    return found


def _spread(scores: Float[np.ndarray, " m"], is_in: Bool[np.ndarray, " m"]) -> float:
    """Return the standard deviation of scores around the means of the two sides."""
    return float(np.sqrt((scores[is_in].var() + scores[~is_in].var()) / 2))
