"""A measured lower bound on epsilon, to stand next to the proven upper bound: if it is larger, the code is wrong.

One run is enough (Steinke, Nasr, Jagielski 2023, "Privacy Auditing with One (1) Training Run", arXiv:2305.08846): each
of many canaries is put in or left out by a fair coin, the auditor looks at what was released and guesses the coins that
are the surest. Canaries are gradients here, one direction each, so the audit runs the real clipping, noise and division
of a `PrivacyPlan` without any model, and the sum over steps of the release along a canary's direction is the strongest
statistic that there is against Gaussian noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.optimize import brentq
from scipy.stats import binom

from hushprompt import checks
from hushprompt.errors import ConfigError
from hushprompt.privacy.plan import Channel, PrivacyPlan

CONFIDENCE = 0.95
"""The bound is too large with at most one chance in twenty."""
LARGEST = 100.0
"""No audit of a few thousand canaries can show more."""


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """What one audit found."""

    num_canaries: int
    num_guesses: int
    num_correct: int
    epsilon_lower_bound: float
    """At `delta` and `confidence`; 0 where the guesses are no better than chance allows."""
    delta: float
    confidence: float


def epsilon_lower_bound(
    *, num_canaries: int, num_guesses: int, num_correct: int, delta: float, confidence: float = CONFIDENCE
) -> float:
    """Give the largest epsilon that is ruled out by so many correct guesses.

    Source: Steinke et al. 2023, Theorem 5.2: under (epsilon, delta)-DP the number of correct guesses is at least v with
    probability at most P[B >= v] + 2 m delta max_i P[v > B >= v - i] / i, where B ~ Binomial(r, e^epsilon / (1 +
    e^epsilon)), m canaries, r guesses.

    Args:
        num_canaries: m, each put in or left out by a fair coin.
        num_guesses: r, at most m.
        num_correct: v, at most r.
        delta: of the claim that is audited.
        confidence: probability with which the bound holds.

    >>> round(epsilon_lower_bound(num_canaries=1000, num_guesses=100, num_correct=100, delta=0.0), 2)
    3.49
    """
    checks.positive(num_canaries=num_canaries)
    checks.in_range(0, num_canaries, num_guesses=num_guesses)
    checks.in_range(0, num_guesses, num_correct=num_correct)
    checks.in_range(0, 1, delta=delta, confidence=confidence)

    def excess(epsilon: float) -> float:
        return _chance(epsilon, num_canaries, num_guesses, num_correct, delta) - (1 - confidence)

    if num_correct == 0 or excess(0.0) >= 0:
        return 0.0
    if excess(LARGEST) < 0:
        return LARGEST
    return float(brentq(excess, 0.0, LARGEST, xtol=1e-9))


def audit_mechanism(
    plan: PrivacyPlan, channel: Channel, *, num_canaries: int, norm: float = 1.0, rng: np.random.Generator
) -> AuditResult:
    """Audit the releases of one channel with gradient canaries that always take part: the sampler is left out.

    Args:
        plan: whose `mechanism` is run, once per accounted release.
        channel: which of its releases.
        num_canaries: m, at least 1000 for a bound that says something.
        norm: of every canary before clipping, in clip norms; 1 is the strongest that an honest clipping lets through.
        rng: stream of the coins and of the noise.

    Raises:
        ConfigError: too few canaries to guess about.
    """
    if num_canaries < 10:
        raise ConfigError(f"num_canaries must be at least 10, got {num_canaries}. 1000 give a useful bound.")
    is_in = rng.random(num_canaries) < 0.5
    clip_norm = plan.clip_norms[channel]
    gradients = (norm * clip_norm * torch.eye(num_canaries))[torch.from_numpy(is_in)]
    scores = torch.zeros(num_canaries, dtype=torch.float64)
    for _ in range(plan.sampler.num_releases(plan.num_rounds)):
        mechanism = plan.mechanism(allowed=channel, expected_count=num_canaries / 2, rng=rng)
        scores += mechanism.release(channel, mechanism.clip(channel, gradients)).double()
    return best_guesses(scores.numpy(), is_in, delta=plan.config.delta)


def best_guesses(
    scores: Float[np.ndarray, " m"], is_in: Bool[np.ndarray, " m"], *, delta: float, confidence: float = CONFIDENCE
) -> AuditResult:
    """Guess "in" for the highest scores and "out" for the lowest, and bound epsilon by how often that is right.

    Of five numbers of guesses the best is taken, each at a fifth of the risk, so the choice costs no confidence.

    Args:
        scores: [m] larger for canaries that look as if they were in.
        is_in: [m] the coins.
        delta: of the claim that is audited.
        confidence: probability with which the bound holds.
    """
    num_canaries, order = len(scores), np.argsort(scores, kind="stable")
    shares = (0.02, 0.05, 0.1, 0.3, 1.0)
    results = []
    for share in shares:
        half = max(1, round(share * num_canaries / 2))
        num_correct = int(is_in[order[-half:]].sum() + (~is_in[order[:half]]).sum())
        risk = (1 - confidence) / len(shares)
        bound = epsilon_lower_bound(
            num_canaries=num_canaries,
            num_guesses=2 * half,
            num_correct=num_correct,
            delta=delta,
            confidence=1 - risk,
        )
        results.append(
            AuditResult(
                num_canaries=num_canaries,
                num_guesses=2 * half,
                num_correct=num_correct,
                epsilon_lower_bound=bound,
                delta=delta,
                confidence=confidence,
            )
        )
    return max(results, key=lambda result: result.epsilon_lower_bound)


def _chance(epsilon: float, num_canaries: int, num_guesses: int, num_correct: int, delta: float) -> float:
    """Bound the probability of so many correct guesses under (epsilon, delta)-DP; see `epsilon_lower_bound`."""
    right = 1 / (1 + math.exp(-epsilon))
    beta = float(binom.sf(num_correct - 1, num_guesses, right))
    below = np.arange(1, num_correct + 1)
    # P[v > B >= v - i] for every i at once.
    between = binom.cdf(num_correct - 1, num_guesses, right) - binom.cdf(num_correct - 1 - below, num_guesses, right)
    return min(1.0, beta + 2 * num_canaries * delta * float((between / below).max()))
