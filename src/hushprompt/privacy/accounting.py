"""Epsilon of adaptive Gaussian releases, and the noise that a target epsilon needs.

Three accountants, all of them upper bounds:

- "gdp": the exact curve of composed Gaussian mechanisms without amplification. Sources: Balle & Wang 2018
  (arXiv:1805.06530), Theorem 8; Dong, Roth, Su 2019 (arXiv:1905.02383), Corollary 2.13 and 3.3.
- "pld": dp_accounting's privacy loss distributions, with Poisson amplification (arXiv:2207.04380), discretized
  pessimistically.
- "rdp": dp_accounting's Renyi accountant (arXiv:1702.07476, arXiv:1908.10530), a cross-check that is never tighter.

Under replace-one neighbors an unsampled Gaussian sum has twice the sensitivity, which is exact. All accountants get it
as half the noise multiplier under add/remove: dp_accounting reads one Gaussian event under replace-one in two ways (its
PLD accountant doubles the sensitivity, its RDP accountant does not). With Poisson sampling a replacement is one removal
and one addition, so (epsilon, delta) becomes (2 epsilon, (1 + e^epsilon) delta): group privacy, Vadhan 2017, Lemma 2.2.
That is loose and needs no assumption on which pair of data sets is the worst under composition (the obvious pair need
not be: Lebeda et al. 2024, arXiv:2405.20769). Where not counting the sampling at all gives less, as for sampling
probabilities near 1, that is taken.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import dp_accounting
from dp_accounting import pld, rdp
from scipy.optimize import brentq
from scipy.special import log_ndtr

from hushprompt import checks
from hushprompt.errors import PrivacyError
from hushprompt.privacy.bisection import AtMost, smallest

Relation = Literal["add_remove", "replace_one"]
Accountant = Literal["gdp", "pld", "rdp"]

RDP_ORDERS = [1 + x / 10 for x in range(1, 100)] + list(range(11, 64))
"""Renyi orders of every cross-check."""
LARGE_RDP_ORDERS = [2 ** (k / 4) for k in range(24, 73)]
"""More orders, needed for a small epsilon; only without sampling, where they cost nothing."""
COARSE, FINE = 1e-2, 1e-3
"""Discretization of privacy losses: for the search, and for every value that is reported."""
MAX_EPSILON = 1e4
"""Above it a closed-form guarantee is reported as infinite."""


@dataclass(frozen=True, kw_only=True)
class GaussianReleases:
    """Adaptive releases of sums of clipped contributions, each with Gaussian noise, as one example meets them."""

    num_steps: int
    """Releases T that an example can take part in."""
    noise_multiplier: float
    """Noise std over the clip norm, which is the add/remove sensitivity; inf releases nothing, 0 adds no noise."""
    sampling_prob: float = 1.0
    """Probability that an example takes part in a release (Poisson); 1 claims no amplification."""

    def __post_init__(self) -> None:
        """Check the fields."""
        checks.non_negative(num_steps=self.num_steps, noise_multiplier=self.noise_multiplier)
        if not 0 < self.sampling_prob <= 1:
            raise PrivacyError(f"sampling_prob must lie in (0, 1], got {self.sampling_prob}.")

    @property
    def is_empty(self) -> bool:
        """True if nothing is released."""
        return self.num_steps == 0 or math.isinf(self.noise_multiplier)

    def event(self) -> dp_accounting.DpEvent:
        """Describe the releases to dp_accounting."""
        if self.is_empty:
            return dp_accounting.NoOpDpEvent()
        release = dp_accounting.GaussianDpEvent(self.noise_multiplier)
        if self.sampling_prob < 1:
            release = dp_accounting.PoissonSampledDpEvent(self.sampling_prob, release)
        return dp_accounting.SelfComposedDpEvent(release, self.num_steps)


def combine_noise_multipliers(*noise_multipliers: float) -> float:
    """Return the one multiplier that several Gaussian releases of one batch amount to: 1/z^2 = sum of 1/z_i^2.

    Exact, and right also where the batch is sampled, since all releases see the same sample. No release gives inf.

    >>> combine_noise_multipliers(2.0, 2.0)
    1.4142135623730951
    """
    if any(z == 0 for z in noise_multipliers):
        return 0.0
    precision = sum(z**-2 for z in noise_multipliers)
    return precision**-0.5 if precision > 0 else math.inf


def epsilon(
    releases: GaussianReleases, *, delta: float, relation: Relation, accountant: Accountant | None = None
) -> float:
    """Return an epsilon for which the releases are (epsilon, delta)-DP.

    Args:
        releases: what is composed.
        delta: in (0, 1).
        relation: what neighboring data sets differ by.
        accountant: None takes "gdp" where no amplification is claimed, "pld" otherwise.

    Returns:
        The smallest epsilon that the accountant can show: 0 for no release, inf without noise.

    Raises:
        PrivacyError: delta is out of range, or "gdp" is asked to account for sampling.
    """
    if not 0 < delta < 1:
        raise PrivacyError(f"delta must lie in (0, 1), got {delta}.")
    checks.one_of(("add_remove", "replace_one"), neighboring_relation=relation)
    return _epsilon(releases, delta, relation, accountant or default_accountant(releases), FINE)


def default_accountant(releases: GaussianReleases) -> Accountant:
    """Return the tightest accountant for the releases."""
    return "gdp" if releases.sampling_prob == 1 else "pld"


def calibrate(
    *, target_epsilon: float, delta: float, num_steps: int, sampling_prob: float, relation: Relation
) -> float:
    """Return the smallest noise multiplier that meets a target, rounded up in the sixth digit.

    Args:
        target_epsilon: greater than 0; inf needs no noise and gives 0.
        delta: in (0, 1).
        num_steps: releases that an example can take part in, at least 1.
        sampling_prob: Poisson sampling probability; 1 claims no amplification.
        relation: what neighboring data sets differ by.

    Returns:
        A noise multiplier with `epsilon(...) <= target_epsilon`, checked.

    >>> round(calibrate(target_epsilon=0.4, delta=1e-5, num_steps=100, sampling_prob=1.0, relation="add_remove"), 1)
    86.3
    """
    checks.positive(target_epsilon=target_epsilon, num_steps=num_steps)
    if math.isinf(target_epsilon):
        return 0.0
    return _calibrate(target_epsilon, delta, num_steps, sampling_prob, relation)


@functools.lru_cache(maxsize=4096)
def _epsilon(releases: GaussianReleases, delta: float, relation: str, accountant: str, interval: float) -> float:
    """Account, with a given discretization of privacy losses."""
    if releases.is_empty:
        return 0.0
    if releases.noise_multiplier == 0:
        return math.inf
    if releases.sampling_prob < 1:
        if accountant == "gdp":
            raise PrivacyError('The "gdp" accountant does not cover sampling. Use "pld" or "rdp".')
        ledger = _ledger(accountant, releases, interval)
        if relation == "replace_one":
            unsampled = GaussianReleases(num_steps=releases.num_steps, noise_multiplier=releases.noise_multiplier)
            exact = "gdp" if accountant == "pld" else accountant
            return min(_replace_one_epsilon(ledger, delta), _epsilon(unsampled, delta, relation, exact, interval))
        return float(ledger.get_epsilon(delta))
    if relation == "replace_one":  # twice the sensitivity
        return _epsilon(_with_noise(releases, releases.noise_multiplier / 2), delta, "add_remove", accountant, interval)
    if accountant == "gdp":
        return _gdp_epsilon(math.sqrt(releases.num_steps) / releases.noise_multiplier, delta)
    return float(_ledger(accountant, releases, interval).get_epsilon(delta))


def _ledger(accountant: str, releases: GaussianReleases, interval: float) -> Any:
    """Compose the releases in a fresh dp_accounting accountant, under add/remove."""
    if accountant == "pld":
        if releases.sampling_prob < 1:
            return SampledLosses(releases, interval)
        ledger = pld.PLDAccountant(value_discretization_interval=interval)
    else:
        ledger = rdp.RdpAccountant(RDP_ORDERS + (LARGE_RDP_ORDERS if releases.sampling_prob == 1 else [64, 128, 256]))
    with _quiet():
        return ledger.compose(releases.event())


class SampledLosses:
    """What PLDAccountant gives for sampled releases, bit for bit, at a third of the cost where `num_steps` varies."""

    def __init__(self, releases: GaussianReleases, interval: float) -> None:
        """Compose one release, which does not depend on the number of steps and is the costly part, with itself."""
        one = _one_sampled_release(releases.noise_multiplier, releases.sampling_prob, interval)
        nothing = pld.privacy_loss_distribution.identity(value_discretization_interval=interval)
        self._losses = nothing.compose(one.self_compose(releases.num_steps))  # from nothing on, as the accountant does

    def get_epsilon(self, delta: float) -> float:
        """Return the epsilon for a delta."""
        return float(self._losses.get_epsilon_for_delta(delta))

    def get_delta(self, epsilon: float) -> float:
        """Return the delta for an epsilon."""
        return float(self._losses.get_delta_for_epsilon(epsilon))


@functools.lru_cache(maxsize=16)
def _one_sampled_release(noise_multiplier: float, sampling_prob: float, interval: float) -> Any:
    """Return dp_accounting's privacy losses of one sampled release, under add/remove."""
    return pld.privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=noise_multiplier, value_discretization_interval=interval, sampling_prob=sampling_prob
    )


def _replace_one_epsilon(ledger: Any, delta: float) -> float:
    """Smallest 2 e with (1 + exp(e)) delta_add_remove(e) <= delta; see the module docstring."""

    def excess(half: float) -> float:
        with _quiet():
            return math.log1p(math.exp(half)) + math.log(max(float(ledger.get_delta(half)), 1e-300)) - math.log(delta)

    high = 1.0
    while excess(high) > 0:
        high *= 2
        if high > 500:
            return math.inf
    return 2 * smallest(lambda half: excess(half) <= 0, 0.0, high, 1e-4)


def _gdp_delta(mu: float, value: float) -> float:
    """Delta of a mu-GDP mechanism at epsilon `value` (Dong et al., Corollary 2.13), without cancellation."""
    first, second = log_ndtr(-value / mu + mu / 2), value + log_ndtr(-value / mu - mu / 2)
    return float(math.exp(first) * -math.expm1(min(second - first, 0.0)))


def _gdp_epsilon(mu: float, delta: float) -> float:
    """Invert `_gdp_delta`; rounded up by the root finder's tolerance."""
    if _gdp_delta(mu, 0.0) <= delta:
        return 0.0
    high = 1.0
    while _gdp_delta(mu, high) > delta:
        high *= 2
        if high > MAX_EPSILON:
            return math.inf
    root = float(brentq(lambda value: _gdp_delta(mu, value) - delta, 0.0, high, xtol=1e-12, rtol=1e-12))
    return root * (1 + 1e-10)


@functools.lru_cache(maxsize=1024)
def _calibrate(target: float, delta: float, num_steps: int, sampling_prob: float, relation: str) -> float:
    """Search the noise multiplier: coarse bracket first, then against the reported discretization."""
    base = GaussianReleases(num_steps=num_steps, noise_multiplier=1.0, sampling_prob=sampling_prob)
    accountant = default_accountant(base)

    def epsilon_of(interval: float) -> Callable[[float], float]:
        return lambda z: _epsilon(_with_noise(base, z), delta, relation, accountant, interval)

    # Without amplification the noise would be enough; it bounds the search from above.
    coarse, fine = (AtMost(epsilon_of(interval), target) for interval in (COARSE, FINE))
    high = 1.0
    while not coarse(high):
        high *= 2
    low = high / 2
    while coarse(low) and low > 1e-3:
        high, low = low, low / 2
    guess = coarse.smallest(low, high, 1e-3)
    # The fine discretization is tighter: the answer lies at or below the guess, and not far.
    below = guess * 0.97
    while fine(below):
        guess, below = below, below * 0.97
    while not fine(guess):
        below, guess = guess, guess * 1.01
    z = _round_up(fine.smallest(below, guess, 1e-4 if sampling_prob < 1 else 1e-9))
    while epsilon_of(FINE)(z) > target:  # rounding alone never needs this; a guarantee must not rest on that
        z = _round_up(z * (1 + 1e-6))
    return z


def _round_up(value: float) -> float:
    """Round up to six significant digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 5)
    rounded = math.ceil(value / unit) * unit
    return float(f"{rounded if rounded >= value else rounded + unit:.6g}")


def _with_noise(releases: GaussianReleases, noise_multiplier: float) -> GaussianReleases:
    """Return the same releases with another noise multiplier."""
    return GaussianReleases(
        num_steps=releases.num_steps, noise_multiplier=noise_multiplier, sampling_prob=releases.sampling_prob
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back dp_accounting's warnings about Renyi orders that do not converge; they do not affect the bound."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
