"""Epsilon of adaptive Gaussian releases, and the noise that a target epsilon needs.

**Composition.** A run may make releases of several mechanisms on the same data, such as one release of statistics and
then T rounds. `compose` is the one place where they come together: unsampled ones are one Gaussian mechanism with
1/z^2 = sum of T_i / z_i^2, and sampled ones compose with it by their privacy losses. Composition is adaptive and does
not depend on the order.

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

import dataclasses
import functools
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
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
LARGEST_SHARE = 0.999
"""Share of a target epsilon that releases of fixed noise may take where others are calibrated beside them."""
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


def compose(parts: Iterable[GaussianReleases]) -> tuple[GaussianReleases, ...]:
    """Return the releases of several mechanisms on the same data as few parts that amount to the same.

    Parts that release nothing are left out, equal ones are counted together, and different unsampled ones become one
    release. One part alone stays as it is, so that parts which release nothing change no epsilon.

    >>> rounds = GaussianReleases(num_steps=3, noise_multiplier=2.0)
    >>> compose([rounds, GaussianReleases(num_steps=0, noise_multiplier=1.0)])
    (GaussianReleases(num_steps=3, noise_multiplier=2.0, sampling_prob=1.0),)
    """
    counts: Counter[tuple[float, float]] = Counter()
    for part in parts:
        if not part.is_empty:
            counts[part.sampling_prob, part.noise_multiplier] += part.num_steps
    unsampled = {z: count for (prob, z), count in counts.items() if prob == 1}
    if len(unsampled) > 1:
        counts = Counter({key: count for key, count in counts.items() if key[0] < 1})
        counts[1.0, _one_multiplier(unsampled)] = 1
    return tuple(
        GaussianReleases(num_steps=count, noise_multiplier=z, sampling_prob=prob)
        for (prob, z), count in sorted(counts.items())
    )


def event(parts: Iterable[GaussianReleases]) -> dp_accounting.DpEvent:
    """Describe the composition of several mechanisms' releases to dp_accounting."""
    events = [part.event() for part in compose(parts)]
    if len(events) == 1:
        return events[0]
    return dp_accounting.ComposedDpEvent(events) if events else dp_accounting.NoOpDpEvent()


def noise_multiplier(released: dp_accounting.DpEvent) -> float:
    """Return the noise multiplier of one unsampled Gaussian release, as a mechanism describes it.

    Raises:
        PrivacyError: it is another event, which these accountants do not compose.
    """
    if not isinstance(released, dp_accounting.GaussianDpEvent):
        raise PrivacyError(f"Only Gaussian releases are accounted for, got {released!r}.")
    return float(released.noise_multiplier)


def _one_multiplier(unsampled: Mapping[float, int]) -> float:
    """Return the noise multiplier of one Gaussian release that amounts to `unsampled[z]` releases of each z."""
    if 0 in unsampled:
        return 0.0
    return float(sum(count * z**-2 for z, count in unsampled.items()) ** -0.5)


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
    releases: GaussianReleases | Iterable[GaussianReleases],
    *,
    delta: float,
    relation: Relation,
    accountant: Accountant | None = None,
) -> float:
    """Return an epsilon for which the releases are (epsilon, delta)-DP.

    Args:
        releases: what is composed: those of one mechanism, or of several on the same data.
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
    parts = _each(releases)
    return _epsilon(compose(parts), delta, relation, accountant or default_accountant(parts), FINE)


def default_accountant(releases: GaussianReleases | Iterable[GaussianReleases]) -> Accountant:
    """Return the tightest accountant for the releases."""
    parts = _each(releases)
    counted = [part for part in parts if not part.is_empty] or parts
    return "gdp" if all(part.sampling_prob == 1 for part in counted) else "pld"


def _each(releases: GaussianReleases | Iterable[GaussianReleases]) -> list[GaussianReleases]:
    """Return the releases of one mechanism, or of several, as a list."""
    return [releases] if isinstance(releases, GaussianReleases) else list(releases)


def calibrate(
    *,
    target_epsilon: float,
    delta: float,
    num_steps: int,
    sampling_prob: float,
    relation: Relation,
    beside: Iterable[GaussianReleases] = (),
) -> float:
    """Return the smallest noise multiplier that meets a target, rounded up in the sixth digit.

    Args:
        target_epsilon: greater than 0; inf needs no noise and gives 0.
        delta: in (0, 1).
        num_steps: releases that an example can take part in, at least 1.
        sampling_prob: Poisson sampling probability; 1 claims no amplification.
        relation: what neighboring data sets differ by.
        beside: releases on the same data whose noise is fixed; the target is for all of them together.

    Returns:
        A noise multiplier with `epsilon(...) <= target_epsilon`, checked.

    Raises:
        PrivacyError: the releases beside leave nothing of the target.

    >>> round(calibrate(target_epsilon=0.4, delta=1e-5, num_steps=100, sampling_prob=1.0, relation="add_remove"), 1)
    86.3
    """
    checks.positive(target_epsilon=target_epsilon, num_steps=num_steps)
    if math.isinf(target_epsilon):
        return 0.0
    base = GaussianReleases(num_steps=num_steps, noise_multiplier=1.0, sampling_prob=sampling_prob)
    return _calibrate(target_epsilon, delta, base, relation, compose(beside))


@functools.lru_cache(maxsize=4096)
def _epsilon(
    parts: tuple[GaussianReleases, ...], delta: float, relation: str, accountant: str, interval: float
) -> float:
    """Account for composed parts, with a given discretization of privacy losses."""
    if not parts:
        return 0.0
    if any(part.noise_multiplier == 0 for part in parts):
        return math.inf
    if any(part.sampling_prob < 1 for part in parts):
        if accountant == "gdp":
            raise PrivacyError('The "gdp" accountant does not cover sampling. Use "pld" or "rdp".')
        ledger = _ledger(accountant, parts, interval)
        if relation == "replace_one":
            unsampled = compose(dataclasses.replace(part, sampling_prob=1.0) for part in parts)
            exact = "gdp" if accountant == "pld" else accountant
            return min(_replace_one_epsilon(ledger, delta), _epsilon(unsampled, delta, relation, exact, interval))
        return float(ledger.get_epsilon(delta))
    (part,) = parts  # `compose` makes one of all that are not sampled
    if relation == "replace_one":  # twice the sensitivity
        return _epsilon((_with_noise(part, part.noise_multiplier / 2),), delta, "add_remove", accountant, interval)
    if accountant == "gdp":
        return _gdp_epsilon(math.sqrt(part.num_steps) / part.noise_multiplier, delta)
    return float(_ledger(accountant, parts, interval).get_epsilon(delta))


def _ledger(accountant: str, parts: tuple[GaussianReleases, ...], interval: float) -> Any:
    """Compose the parts in a fresh dp_accounting accountant, under add/remove."""
    is_sampled = any(part.sampling_prob < 1 for part in parts)
    if accountant == "pld":
        if is_sampled:
            return ComposedLosses(parts, interval)
        ledger = pld.PLDAccountant(value_discretization_interval=interval)
    else:
        ledger = rdp.RdpAccountant(RDP_ORDERS + ([64, 128, 256] if is_sampled else LARGE_RDP_ORDERS))
    with _quiet():
        return ledger.compose(event(parts))


class ComposedLosses:
    """What PLDAccountant returns, bit for bit, at a third of the cost where only the number of steps varies."""

    def __init__(self, parts: Iterable[GaussianReleases], interval: float) -> None:
        """Compose the parts; one sampled release, the costly part of it, does not depend on the number of steps."""
        self._losses = pld.privacy_loss_distribution.identity(value_discretization_interval=interval)
        for part in parts:
            if part.sampling_prob < 1:
                one = _one_release(part.noise_multiplier, part.sampling_prob, interval)
                losses = one.self_compose(part.num_steps)
            else:  # T releases with multiplier z are one with z / sqrt(T)
                losses = _one_release(part.noise_multiplier / math.sqrt(part.num_steps), 1.0, interval)
            self._losses = self._losses.compose(losses)

    def get_epsilon(self, delta: float) -> float:
        """Return the epsilon for a delta."""
        return float(self._losses.get_epsilon_for_delta(delta))

    def get_delta(self, epsilon: float) -> float:
        """Return the delta for an epsilon."""
        return float(self._losses.get_delta_for_epsilon(epsilon))


@functools.lru_cache(maxsize=16)
def _one_release(noise_multiplier: float, sampling_prob: float, interval: float) -> Any:
    """Return dp_accounting's privacy losses of one release, under add/remove."""
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
def _calibrate(
    target: float, delta: float, base: GaussianReleases, relation: str, beside: tuple[GaussianReleases, ...]
) -> float:
    """Search the noise multiplier: coarse bracket first, then against the reported discretization."""
    accountant = default_accountant((base, *beside))

    def epsilon_of(interval: float) -> Callable[[float], float]:
        return lambda z: _epsilon(compose((_with_noise(base, z), *beside)), delta, relation, accountant, interval)

    coarsest = COARSE
    if beside:  # the noise of the base release may grow without end, and the others' part of epsilon stays
        if epsilon_of(FINE)(math.inf) >= LARGEST_SHARE * target:
            raise PrivacyError(
                f"The releases beside have epsilon {epsilon_of(FINE)(math.inf):.4g} alone, which leaves nothing of "
                f"{target:g}. Give them more noise, or take a larger epsilon."
            )
        coarsest = COARSE if epsilon_of(COARSE)(math.inf) < LARGEST_SHARE * target else FINE

    # Without amplification the noise would be enough; it bounds the search from above.
    coarse, fine = (AtMost(epsilon_of(interval), target) for interval in (coarsest, FINE))
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
    z = _round_up(fine.smallest(below, guess, 1e-4 if accountant == "pld" else 1e-9))
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
    return dataclasses.replace(releases, noise_multiplier=noise_multiplier)


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
