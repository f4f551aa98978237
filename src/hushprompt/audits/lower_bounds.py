"""From how often an auditor guessed right to the largest epsilon that is ruled out.

Two kinds of experiment, two kinds of bound. **One run, many canaries**: each of m canaries is in or out by a fair coin,
and the auditor guesses r of the coins (Steinke, Nasr, Jagielski 2023, arXiv:2305.08846; Mahloujifar, Melis, Chaudhuri
2024, arXiv:2410.22235). The canaries share one run and may disturb each other; the theorems allow for that.
**Independent trials**: scores of experiments with and without a canary, drawn independently (Clopper & Pearson 1934;
Nasr et al. 2023, arXiv:2302.07956). Where scores are not independent, such as candidates that share a model, only the
first kind holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.stats import beta, binom

from hushprompt import checks
from hushprompt.privacy import accounting
from hushprompt.privacy.releases import GaussianReleases

CONFIDENCE = 0.95
"""The bound is too large with at most one chance in twenty."""
LARGEST = 100.0
"""No audit of a few thousand canaries can show more."""
Curve = Literal["gaussian", "approximate"]
"""Trade-off curve of the claim: that of a Gaussian mechanism, or of any (epsilon, delta)-DP one."""

_NORMAL = NormalDist()


def epsilon_lower_bound(
    *, num_canaries: int, num_guesses: int, num_correct: int, delta: float, confidence: float = CONFIDENCE
) -> float:
    """Return the largest epsilon that is ruled out by so many correct guesses.

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
    _check(num_canaries, num_guesses, num_correct, delta, confidence)

    def excess(epsilon: float) -> float:
        return _chance(epsilon, num_canaries, num_guesses, num_correct, delta) - (1 - confidence)

    if num_correct == 0 or excess(0.0) >= 0:
        return 0.0
    if excess(LARGEST) < 0:
        return LARGEST
    return float(brentq(excess, 0.0, LARGEST, xtol=1e-9))


def f_dp_lower_bound(
    *,
    num_canaries: int,
    num_guesses: int,
    num_correct: int,
    delta: float,
    curve: Curve = "gaussian",
    confidence: float = CONFIDENCE,
) -> float:
    """Return the largest epsilon that is ruled out by so many correct guesses, by the whole trade-off curve.

    Source: Mahloujifar et al. 2024, Algorithm 3 and Theorem 9. A claim of (epsilon, delta) is read as a trade-off
    curve f, and the claim is rejected where the recursion below, which bounds what so many correct guesses mean for the
    guesses' distribution, contradicts f.

    Args:
        num_canaries: m, each put in or left out by a fair coin.
        num_guesses: c', at most m.
        num_correct: c, at most c'.
        delta: at which the curve is read as an epsilon.
        curve: "gaussian" supposes that the mechanism is a composition of Gaussian ones without sampling, as unsampled
            releases are, exactly: then the bound is about mu, which epsilon follows from. "approximate" supposes
            nothing, and holds for every mechanism.
        confidence: probability with which the bound holds.
    """
    _check(num_canaries, num_guesses, num_correct, delta, confidence)
    risk = 1 - confidence
    if num_correct == 0:
        return 0.0
    if curve == "approximate":

        def is_ruled_out(epsilon: float) -> bool:
            return _contradicts(_approximate(epsilon, delta), num_canaries, num_guesses, num_correct, risk)

        return _largest_ruled_out(is_ruled_out)
    mu = _largest_ruled_out(lambda mu: _contradicts(_gaussian(mu), num_canaries, num_guesses, num_correct, risk))
    return gdp_epsilon(mu, delta)


def clopper_pearson_lower_bound(
    in_scores: Float[np.ndarray, " a"],
    out_scores: Float[np.ndarray, " b"],
    *,
    delta: float,
    threshold: float | None = None,
    confidence: float = CONFIDENCE,
) -> float:
    """Return a bound from error rates of independent trials, for every (epsilon, delta)-DP mechanism.

    epsilon >= ln((1 - delta - FNR) / FPR) and the same with the errors exchanged, each error at its upper
    Clopper-Pearson limit (Jagielski, Ullman, Oprea 2020, arXiv:2006.07709).

    Args:
        in_scores: [a] larger for trials with the canary.
        out_scores: [b] scores of trials without it.
        delta: of the claim that is audited.
        threshold: fixed in advance; None finds it on every other score, and tests it on the rest.
        confidence: probability with which the bound holds.
    """

    def bound(fpr: float, fnr: float) -> float:
        gains = (1 - delta - fnr, fpr), (1 - delta - fpr, fnr)
        return max(math.log(top / bottom) if top > 0 < bottom else 0.0 for top, bottom in gains)

    return max(0.0, _by_threshold(in_scores, out_scores, threshold, confidence, bound))


def gdp_lower_bound(
    in_scores: Float[np.ndarray, " a"],
    out_scores: Float[np.ndarray, " b"],
    *,
    delta: float,
    threshold: float | None = None,
    confidence: float = CONFIDENCE,
) -> float:
    """Return a bound from error rates of independent trials, for compositions of Gaussian mechanisms.

    mu >= Phi^-1(1 - FPR) - Phi^-1(FNR) (Dong, Roth, Su 2019, arXiv:1905.02383, Eq. 6) at upper Clopper-Pearson limits,
    and epsilon from mu exactly. Arguments as `clopper_pearson_lower_bound`.
    """

    def bound(fpr: float, fnr: float) -> float:
        if fpr >= 1 or fnr >= 1:
            return 0.0
        return max(0.0, _NORMAL.inv_cdf(1 - fpr) - _NORMAL.inv_cdf(fnr))

    return gdp_epsilon(_by_threshold(in_scores, out_scores, threshold, confidence, bound), delta)


def gdp_epsilon(mu: float, delta: float) -> float:
    """Return the epsilon of a mu-GDP mechanism at delta, exactly."""
    if mu <= 0:
        return 0.0
    release = GaussianReleases(num_steps=1, noise_multiplier=1 / mu)
    return accounting.epsilon(release, delta=delta, relation="add_remove", accountant="gdp")


def _check(num_canaries: int, num_guesses: int, num_correct: int, delta: float, confidence: float) -> None:
    """Check the counts of a one-run audit."""
    checks.positive(num_canaries=num_canaries)
    checks.in_range(0, num_canaries, num_guesses=num_guesses)
    checks.in_range(0, num_guesses, num_correct=num_correct)
    checks.in_range(0, 1, delta=delta, confidence=confidence)


def _largest_ruled_out(is_ruled_out: Callable[[float], bool]) -> float:
    """Bisect for the largest value that is ruled out, from below; 0 if none is."""
    if not is_ruled_out(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while is_ruled_out(high):
        low, high = high, 2 * high
        if low > LARGEST:
            return LARGEST
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if is_ruled_out(middle) else (low, middle)
    return low


def _chance(epsilon: float, num_canaries: int, num_guesses: int, num_correct: int, delta: float) -> float:
    """Bound the probability of so many correct guesses under (epsilon, delta)-DP; see `epsilon_lower_bound`."""
    right = 1 / (1 + math.exp(-epsilon))
    at_least = float(binom.sf(num_correct - 1, num_guesses, right))
    below = np.arange(1, num_correct + 1)
    # P[v > B >= v - i] for every i at once.
    between = binom.cdf(num_correct - 1, num_guesses, right) - binom.cdf(num_correct - 1 - below, num_guesses, right)
    return min(1.0, at_least + 2 * num_canaries * delta * float((between / below).max()))


def _contradicts(
    least: Callable[[float], float], num_canaries: int, num_guesses: int, num_correct: int, risk: float
) -> bool:
    """Whether so many correct guesses with a probability of `risk` contradict a trade-off curve.

    Args:
        least: the smallest probability that an event may have in a neighboring world, from its probability in one.
        num_canaries: m.
        num_guesses: c'.
        num_correct: c.
        risk: tau, the probability that so many correct guesses would have.
    """
    # r: share of canaries guessed right with i or more right guesses in all; h: the same for wrong ones (Lemma 10).
    right = risk * num_correct / num_canaries
    wrong = risk * (num_guesses - num_correct) / num_canaries
    for index in range(num_correct - 1, -1, -1):
        raised = max(wrong, least(right))
        if raised == wrong:
            break  # nothing moves after this
        right = min(1.0, right + index / (num_guesses - index) * (raised - wrong))
        wrong = raised
    return right + wrong > num_guesses / num_canaries


def _gaussian(mu: float) -> Callable[[float], float]:
    """Return x -> f(1 - x) = Phi(Phi^-1(x) - mu), the curve of a mu-GDP mechanism."""
    return lambda x: 0.5 * math.erfc((mu - _NORMAL.inv_cdf(x)) / math.sqrt(2)) if 0 < x < 1 else float(x >= 1)


def _approximate(epsilon: float, delta: float) -> Callable[[float], float]:
    """Return x -> f(1 - x) of (epsilon, delta)-DP: max(0, 1 - delta - e^epsilon (1 - x), e^-epsilon (x - delta))."""
    up, down = math.exp(epsilon), math.exp(-epsilon)
    return lambda share: max(0.0, 1 - delta - up * (1 - share), down * (share - delta))


def _by_threshold(
    in_scores: np.ndarray,
    out_scores: np.ndarray,
    threshold: float | None,
    confidence: float,
    bound: Callable[[float, float], float],
) -> float:
    """Return `bound(FPR, FNR)` at upper limits of the two errors, each at half of the risk."""
    if threshold is not None:
        return bound(*_error_limits(in_scores, out_scores, threshold, confidence))
    first, rest = (in_scores[::2], out_scores[::2]), (in_scores[1::2], out_scores[1::2])
    if not len(rest[0]) or not len(rest[1]):
        return 0.0
    found = np.unique(np.quantile(np.concatenate(first), np.linspace(0.0, 1.0, 101)))
    best = max(found, key=lambda point: bound(*_error_limits(*first, float(point), confidence)))
    return bound(*_error_limits(*rest, float(best), confidence))


def _error_limits(
    in_scores: np.ndarray, out_scores: np.ndarray, threshold: float, confidence: float
) -> tuple[float, float]:
    """Return upper limits of the false-positive and the false-negative rate of "score >= threshold"."""
    risk = (1 - confidence) / 2
    wrong = int((out_scores >= threshold).sum()), int((in_scores < threshold).sum())
    limits = [
        1.0 if count == size else float(beta.ppf(1 - risk, count + 1, size - count))
        for count, size in zip(wrong, (len(out_scores), len(in_scores)), strict=True)
    ]
    return limits[0], limits[1]
