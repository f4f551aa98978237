"""A measured lower bound on epsilon, to stand next to the proven upper bound: if it is larger, the code is wrong.

One run is enough (Steinke, Nasr, Jagielski 2023, "Privacy Auditing with One (1) Training Run", arXiv:2305.08846): each
of many canaries is put in or left out by a fair coin, the auditor looks at what was released and guesses the coins that
are the surest. Canaries are gradients here, one direction each, so the audit runs the real sampling, clipping, noise
and division of a `PrivacyPlan` without any model, and scores each canary by the likelihood ratio of what was released
along its direction, which no test can beat (Neyman & Pearson 1933).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hushprompt.audits.lower_bounds import (
    CONFIDENCE,
    clopper_pearson_lower_bound,
    epsilon_lower_bound,
    f_dp_lower_bound,
    gdp_lower_bound,
)
from hushprompt.errors import ConfigError
from hushprompt.federation.payload import add_shares
from hushprompt.privacy.clipping import ClippedSum, add_up
from hushprompt.privacy.config import Audience, Channel
from hushprompt.privacy.mechanisms.base import ClassRows, Mechanism
from hushprompt.privacy.plan import PrivacyPlan

Bound = Literal["one_run", "f_dp_gaussian", "f_dp_approximate"]
"""Steinke et al. 2023 (any mechanism), Mahloujifar et al. 2024 for Gaussian mechanisms, or the latter for any."""
SHARES = (0.02, 0.05, 0.1, 0.3, 1.0)
"""Shares of the canaries that are guessed about; the best is reported, at a fifth of the risk each."""
NUM_EXAMPLES = 3
"""Examples of a canary that is a client or a group."""
NUM_CLASSES = 5
"""Classes of canaries whose sums are made class by class."""
BLOCK = 500
"""Canaries that share one release: noise is independent from coordinate to coordinate, so blocks change nothing."""


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """Result of one audit."""

    num_canaries: int
    num_guesses: int
    num_correct: int
    epsilon_lower_bound: float
    """At `delta` and `confidence`; 0 where the guesses are no better than chance allows."""
    delta: float
    confidence: float
    bound: str = "one_run"
    """Theorem that the bound comes from."""


def audit_audience(
    plan: PrivacyPlan,
    audience: Audience,
    *,
    num_canaries: int,
    norm: float = 1.0,
    rng: np.random.Generator,
    confidence: float = CONFIDENCE,
) -> list[AuditResult]:
    """Audit all releases that an audience sees, by every bound that holds for the plan.

    Without sampling the releases are Gaussian mechanisms exactly, so the f-DP bound and the one of independent trials
    (each canary has a coordinate of its own) hold too, and come near the proven epsilon.

    Returns:
        One result a bound; empty where the audience sees nothing or has no claim, where batches are clipped, not
        examples, and where the sampling probability depends on a client's size, which the canaries are not.
    """
    seen = plan.channels if audience is Audience.PERSONAL else plan.channels - {Channel.LOCAL}
    if not seen or plan.num_rounds == 0 or plan.release_plan.batch_clipping is not None or plan.is_outside(audience):
        return []
    if _sampling_prob(plan) is None:
        return []
    scores, is_in = canary_scores(plan, seen, num_canaries=num_canaries, norm=norm, rng=rng)
    delta = plan.config.delta
    found = functools.partial(best_guesses, scores, is_in, delta=delta, confidence=confidence, is_ratio=True)
    results = [found()]
    if _sampling_prob(plan) == 1:
        results.append(found(bound="f_dp_gaussian"))
        results.append(by_independent_trials(scores, is_in, delta, confidence))
    return results


def canary_scores(
    plan: PrivacyPlan,
    channels: set[Channel] | frozenset[Channel],
    *,
    num_canaries: int,
    norm: float,
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, " m"], Bool[np.ndarray, " m"]]:
    """Train on canaries alone, as the plan says, and score each by the likelihood ratio of "in" against "out".

    A canary is an example, or a client or group with several examples where that is the unit. One that is out is not
    there; under replace-one neighbors it is exchanged for its opposite. Where amplification is claimed, nobody sees
    which step a canary took part in, and the ratio is of the mixture; where none is claimed, the auditor knows the
    step.

    Returns:
        [m] scores and [m] coins.

    Raises:
        ConfigError: too few canaries to guess about.
    """
    if num_canaries < 10:
        raise ConfigError(f"num_canaries must be at least 10, got {num_canaries}. 1000 give a useful bound.")
    is_in = rng.random(num_canaries) < 0.5
    scores = np.zeros(num_canaries)
    for start in range(0, num_canaries, BLOCK):
        block = slice(start, min(start + BLOCK, num_canaries))
        for score in _steps(plan, channels, is_in[block], norm, rng):
            scores[block] += score
    return scores, is_in


def _steps(
    plan: PrivacyPlan,
    channels: set[Channel] | frozenset[Channel],
    is_in: Bool[np.ndarray, " m"],
    norm: float,
    rng: np.random.Generator,
) -> Iterator[Float[np.ndarray, " m"]]:
    """Return each step's contribution to the scores of one block of canaries."""
    sampling_prob, shift = _sampling_prob(plan), min(norm, 1.0)  # what an honest clipping leaves, in clip norms
    is_exchanged = plan.config.neighboring_relation == "replace_one"
    signs = torch.from_numpy(np.where(is_in | (not is_exchanged), norm, -norm)).float()
    for place, (batch, count) in enumerate(_batches(plan, len(is_in), rng)):
        step = place % plan.sampler.steps_per_round
        there = batch if is_exchanged else batch[is_in[batch]]
        canaries = torch.diag(signs)[there]
        released = {
            channel: _release(plan, channel, canaries, there, count, len(is_in), step, rng)
            for channel in sorted(channels)
        }

        def likelier(move: float, seen: dict[Channel, np.ndarray] = released, step: int = step) -> np.ndarray:
            """Return [m] ln of how much likelier releases are where a canary moves the sum than where it is absent."""
            release = plan.release_plan
            parts = {channel: release.exact_sensitivity(channel, 1.0, step) for channel in seen}
            ratios = [
                _log_ratio(sums, release.sum_multiplier(channel), move * parts[channel])
                for channel, sums in seen.items()
            ]
            ratio: Float[np.ndarray, " m"] = np.sum(ratios, axis=0)
            if sampling_prob is None or sampling_prob == 1:
                return ratio
            return np.logaddexp(np.log1p(-sampling_prob), np.log(sampling_prob) + ratio)

        score = likelier(shift) - likelier(-shift) if is_exchanged else likelier(shift)
        if sampling_prob is None or sampling_prob == 1:
            knows = np.zeros(len(is_in), dtype=bool)
            knows[batch] = True
            score = np.where(knows, score, 0.0)
        yield score


def bound_of(plan: PrivacyPlan) -> Bound:
    """Return the tightest theorem that holds for guesses about one training of a plan."""
    return "f_dp_gaussian" if _sampling_prob(plan) == 1 else "f_dp_approximate"


def _sampling_prob(plan: PrivacyPlan) -> float | None:
    """Return the amplification that is claimed for a canary; None where it is not that of every client."""
    if plan.config.privacy_unit == "client":
        return 1.0
    probs = {plan.sampler.amplification_for(size) for size in (BLOCK, *plan.client_sizes)}
    return probs.pop() if len(probs) == 1 else None


def _batches(plan: PrivacyPlan, num_canaries: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, float]]:
    """Return each step's canaries and the public expected batch size; a client takes part in every step."""
    if plan.config.privacy_unit == "client":
        for _ in range(plan.num_rounds * plan.sampler.steps_per_round):
            yield np.arange(num_canaries), 1.0
        return
    count = plan.sampler.expected_batch_size(num_canaries)
    for _ in range(plan.num_rounds):
        for batch in plan.sampler.batches(num_canaries, rng):
            yield batch, count


def _release(
    plan: PrivacyPlan,
    channel: Channel,
    canaries: Float[Tensor, "b m"],
    who: Int[np.ndarray, " b"],
    count: float,
    num_units: int,
    step: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, " m"]:
    """Clip, add noise and divide as the plan does, and return the sum along each canary in clip norms."""
    is_client, groups = plan.config.privacy_unit == "client", None
    if plan.config.privacy_unit == "group":
        groups = torch.arange(len(canaries)).repeat_interleave(NUM_EXAMPLES)
        canaries, who = canaries[groups], who[groups.numpy()]
    tool = functools.partial(
        plan.mechanism, allowed=channel, expected_count=count, rng=rng, num_clients=num_units, step=step, groups=groups
    )
    mechanism = tool()
    if plan.release_plan.parts:
        return _release_in_classes(plan, tool, channel, canaries, who)
    clip_norm = plan.release_plan.clip_norms[channel]
    # Examples of a client, or a group, are all alike: clipped one by one instead of as one, they would move the sum by
    # their number.
    contributions = (
        [row.expand(NUM_EXAMPLES, -1) for row in clip_norm * canaries] if is_client else [clip_norm * canaries]
    )
    empty = canaries.new_zeros(0, canaries.shape[1])
    summed = add_up([mechanism.clip(channel, rows) for rows in contributions or [empty]])
    released = _released(plan, channel, summed, tool)
    return released.double().numpy() * mechanism.expected_count / clip_norm


def _released(
    plan: PrivacyPlan, channel: Channel, summed: ClippedSum, tool: Callable[[], Mechanism]
) -> Float[Tensor, "*p"]:
    """Return the release of a sum; with noise shares, what a server has left without those of clients on its side."""
    if channel is Channel.LOCAL or not plan.release_plan.has_shares:
        return tool().release(channel, summed).value
    everyone = plan.release_plan.cohort_size
    others = dataclasses.replace(summed, value=torch.zeros_like(summed.value), centered_count=0.0)
    secret = [summed, *[others] * (plan.terms().honest_among(everyone) - 1)]
    total = add_shares([tool().share(channel, own, everyone) for own in secret])
    return tool().open_shares(channel, total, everyone).value.reshape(summed.value.shape)


def _release_in_classes(
    plan: PrivacyPlan,
    tool: Callable[[], Mechanism],
    channel: Channel,
    canaries: Float[Tensor, "b m"],
    who: Int[np.ndarray, " b"],
) -> Float[np.ndarray, " m"]:
    """Sum canaries in classes, a few in each, and return the noisy sums along each canary in its own class."""
    classes = np.arange(canaries.shape[1]) % NUM_CLASSES
    is_public, mechanism = torch.ones(NUM_CLASSES, dtype=torch.bool), tool()
    summed = mechanism.clip_in_classes(channel, ClassRows(canaries, torch.from_numpy(classes[who]), is_public))
    released = _released(plan, channel, summed, tool)[classes, np.arange(len(classes))]
    return released.double().numpy() * mechanism.expected_count / mechanism.clip_norms[channel]


def _log_ratio(released: Float[np.ndarray, " m"], noise_multiplier: float, shift: float) -> Float[np.ndarray, " m"]:
    """Return ln N(x; shift, z^2) / N(x; 0, z^2); without noise a large multiple of it that stays finite."""
    variance = max(noise_multiplier, 1e-3) ** 2
    return shift * (released - shift / 2) / variance


def best_guesses(
    scores: Float[np.ndarray, " m"],
    is_in: Bool[np.ndarray, " m"],
    *,
    delta: float,
    confidence: float = CONFIDENCE,
    bound: Bound = "one_run",
    is_ratio: bool = False,
) -> AuditResult:
    """Guess about the canaries whose scores are the surest, and bound epsilon by how often that is right.

    Of five numbers of guesses the best is taken, each at a fifth of the risk, so the choice costs no confidence.

    Args:
        scores: [m] larger for canaries that look as if they were in.
        is_in: [m] the coins.
        delta: of the claim that is audited.
        confidence: probability with which the bound holds.
        bound: theorem that turns right guesses into epsilon.
        is_ratio: scores are log-likelihood ratios, so their size says how sure a guess is and their sign what to guess.
            False: as many guesses "in", for the highest scores, as "out", for the lowest.
    """
    results = []
    for share in SHARES:
        guessed, right = _guesses(scores, is_in, max(1, round(share * len(scores) / 2)), is_ratio)
        at_least = _bound(bound, len(scores), guessed, right, delta, 1 - (1 - confidence) / len(SHARES))
        results.append(
            AuditResult(
                num_canaries=len(scores),
                num_guesses=guessed,
                num_correct=right,
                epsilon_lower_bound=at_least,
                delta=delta,
                confidence=confidence,
                bound=bound,
            )
        )
    return max(results, key=lambda result: result.epsilon_lower_bound)


def _guesses(
    scores: Float[np.ndarray, " m"], is_in: Bool[np.ndarray, " m"], half: int, is_ratio: bool
) -> tuple[int, int]:
    """Guess about `2 half` canaries, or all there are; give how many guesses there were, and how many were right."""
    if is_ratio:
        surest = np.argsort(-np.abs(scores), kind="stable")[: 2 * half]
        return len(surest), int(((scores[surest] > 0) == is_in[surest]).sum())
    order = np.argsort(scores, kind="stable")
    return 2 * half, int(is_in[order[-half:]].sum() + (~is_in[order[:half]]).sum())


def _bound(
    bound: Bound, num_canaries: int, num_guesses: int, num_correct: int, delta: float, confidence: float
) -> float:
    """Turn right guesses into epsilon by one of the theorems."""
    if bound == "one_run":
        return epsilon_lower_bound(
            num_canaries=num_canaries,
            num_guesses=num_guesses,
            num_correct=num_correct,
            delta=delta,
            confidence=confidence,
        )
    return f_dp_lower_bound(
        num_canaries=num_canaries,
        num_guesses=num_guesses,
        num_correct=num_correct,
        delta=delta,
        curve="gaussian" if bound == "f_dp_gaussian" else "approximate",
        confidence=confidence,
    )


def by_independent_trials(
    scores: Float[np.ndarray, " m"],
    is_in: Bool[np.ndarray, " m"],
    delta: float,
    confidence: float = CONFIDENCE,
    *,
    is_gaussian: bool = True,
) -> AuditResult:
    """Bound epsilon by the errors of the test "likelihood ratio above 1", where neither error is preferred.

    Args:
        scores: [m] log-likelihood ratios of trials that share no randomness.
        is_in: [m] in which trials the canary was in.
        delta: of the claim that is audited.
        confidence: probability with which the bound holds.
        is_gaussian: whether the mechanism is a composition of Gaussian ones, without sampling.
    """
    guessed_in, bound = scores >= 0, gdp_lower_bound if is_gaussian else clopper_pearson_lower_bound
    return AuditResult(
        num_canaries=len(scores),
        num_guesses=len(scores),
        num_correct=int((guessed_in == is_in).sum()),
        epsilon_lower_bound=bound(scores[is_in], scores[~is_in], delta=delta, threshold=0.0, confidence=confidence),
        delta=delta,
        confidence=confidence,
        bound="gdp_independent_trials" if is_gaussian else "independent_trials",
    )
