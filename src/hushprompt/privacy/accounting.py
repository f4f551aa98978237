"""Epsilon of adaptive Gaussian releases, and the noise that a target epsilon needs.

**Composition.** A run may make releases of several mechanisms on the same data, such as one release of statistics and
then T rounds. `compose` is the one place where they come together: unsampled ones are one Gaussian mechanism with
1/z^2 = sum of T_i / z_i^2, and sampled ones compose with it by their privacy losses. Composition is adaptive and does
not depend on the order.

Three accountants, all of them upper bounds, of which the smallest that applies is claimed:

- "gdp": the exact curve of composed Gaussian mechanisms without amplification. Sources: Balle & Wang 2018
  (arXiv:1805.06530), Theorem 8; Dong, Roth, Su 2019 (arXiv:1905.02383), Corollary 2.13 and 3.3.
- "pld": dp_accounting's privacy loss distributions, with Poisson amplification (arXiv:2207.04380), discretized
  pessimistically. It is the tightest for sampled releases, and claims nothing at a delta so small that the rounding of
  its Fourier transforms could matter (`losses.py`).
- "rdp": the Renyi accountant (arXiv:1702.07476, arXiv:1908.10530; `renyi.py`), a cross-check. It is claimed, or "gdp"
  without the amplification, where "pld" claims nothing or its grid is coarse for a small epsilon.

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
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

import dp_accounting
import numpy as np
from scipy.optimize import brentq
from scipy.special import log_ndtr

from hushprompt import checks
from hushprompt.errors import PrivacyError
from hushprompt.privacy.bisection import AtMost, smallest
from hushprompt.privacy.least_epsilon import least_epsilon
from hushprompt.privacy.losses import FINE, ComposedLosses, is_coarse, is_proven, smallest_delta
from hushprompt.privacy.releases import GaussianReleases
from hushprompt.privacy.renyi import RenyiBound
from hushprompt.words import counted

Relation = Literal["add_remove", "replace_one"]
Accountant = Literal["gdp", "pld", "rdp"]

COARSE = 1e-2
"""Discretization of privacy losses for the search."""
LARGEST_SHARE = 0.999
"""Share of a target epsilon that releases of fixed noise may take where others are calibrated beside them."""
LOWEST_SAMPLED_NOISE = 0.05
"""Where the search for a noise multiplier of sampled releases ends."""
LOUDEST = 20.0
"""Root of T over z above which losses of unsampled releases are not put on a grid: that cross-check would be slow."""
MANY_STEPS = 50_000
"""Above, rounding of losses on a coarse grid adds up to several times epsilon."""
LARGEST_TARGET = 1e6
"""Of epsilon: above, searches leave the range of numbers."""


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
        delta: from 1e-100, below 0.1.
        relation: what neighboring data sets differ by.
        accountant: None takes the smallest bound that applies, see `claim`.

    Returns:
        The smallest epsilon that the accountant can show: 0 for no release, inf without noise.

    Raises:
        PrivacyError: delta is out of range, or "gdp" is asked to account for sampling.
    """
    checks.delta(delta=delta)
    checks.one_of(("add_remove", "replace_one"), neighboring_relation=relation)
    parts = compose(_each(releases))
    if accountant is None:
        return _claim(parts, delta, relation, FINE).epsilon
    if accountant == "gdp" and any(part.sampling_prob < 1 for part in parts):
        raise PrivacyError('The "gdp" accountant does not cover sampling. Use "pld" or "rdp".')
    return _epsilon(parts, delta, relation, accountant, FINE)


class Claim(NamedTuple):
    """An epsilon, and who shows it."""

    epsilon: float
    accountant: Accountant


def claim(
    releases: GaussianReleases | Iterable[GaussianReleases], *, delta: float, relation: Relation
) -> tuple[Claim, dict[Accountant, float], float]:
    """Return what is claimed of the releases, what every accountant that applies shows, and what no claim may be below.

    Arguments are those of `epsilon`. The last value is exact without sampling, and the result of an attack
    (`least_epsilon.py`) with it.
    """
    epsilon((), delta=delta, relation=relation)  # checks the arguments
    parts = compose(_each(releases))
    claimed = _claim(parts, delta, relation, FINE)
    shown = {name: _epsilon(parts, delta, relation, name, FINE) for name in _accountants(parts, delta)}
    shown[claimed.accountant] = claimed.epsilon
    if all(part.sampling_prob == 1 for part in parts):
        return claimed, shown, shown["gdp"]
    least = max(
        least_epsilon(
            noise_multiplier=part.noise_multiplier,
            sampling_prob=part.sampling_prob,
            num_steps=part.num_steps,
            delta=delta,
        )
        if part.noise_multiplier
        else 0.0
        for part in parts
    )
    return claimed, shown, least


def _accountants(parts: tuple[GaussianReleases, ...], delta: float) -> tuple[Accountant, ...]:
    """Return the accountants that apply, the tightest first."""
    if any(part.sampling_prob < 1 for part in parts):
        return ("pld", "rdp") if is_proven(parts, delta) else ("rdp",)
    if is_proven(parts, delta) and all(part.num_steps**0.5 <= LOUDEST * part.noise_multiplier for part in parts):
        return ("gdp", "pld", "rdp")
    return ("gdp", "rdp")


def _is_limited(value: float, parts: tuple[GaussianReleases, ...], delta: float, relation: str) -> bool:
    """True where "pld" could have shown a smaller epsilon, had it been believed at a smaller delta."""
    half = value / 2 if relation == "replace_one" else 0.0
    return math.isinf(value) or math.log(delta) - float(np.logaddexp(0.0, half)) < math.log(smallest_delta(parts))


@functools.lru_cache(maxsize=4096)
def _claim(parts: tuple[GaussianReleases, ...], delta: float, relation: str, interval: float) -> Claim:
    """Return the smallest bound that applies."""
    if all(part.sampling_prob == 1 for part in parts):
        return Claim(_epsilon(parts, delta, relation, "gdp", interval), "gdp")
    shown: list[Claim] = []
    if is_proven(parts, delta):
        shown.append(Claim(_epsilon(parts, delta, relation, "pld", interval), "pld"))
    is_loose = any(part.num_steps > MANY_STEPS for part in parts)
    if shown and interval == FINE:
        is_loose = is_loose or _is_limited(shown[0].epsilon, parts, delta, relation) or is_coarse(parts)
    if not shown or is_loose:
        shown.append(Claim(_epsilon(parts, delta, relation, "rdp", interval), "rdp"))
        shown.append(Claim(_epsilon(_unsampled(parts), delta, relation, "gdp", interval), "gdp"))
    return min(shown, key=lambda each: each.epsilon)


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
        target_epsilon: greater than 0, at most 1e6; inf needs no noise and gives 0.
        delta: from 1e-100, below 0.1.
        num_steps: releases that an example can take part in, at least 1.
        sampling_prob: Poisson sampling probability; 1 claims no amplification.
        relation: what neighboring data sets differ by.
        beside: releases on the same data whose noise is fixed; the target is for all of them together.

    Returns:
        A noise multiplier with `epsilon(...) <= target_epsilon`, checked.

    Raises:
        PrivacyError: the target is too large; the releases beside leave nothing of it; or delta is out of range, or so
            large that any noise would meet the target, because an example is hardly ever drawn.

    >>> round(calibrate(target_epsilon=0.4, delta=1e-5, num_steps=100, sampling_prob=1.0, relation="add_remove"), 1)
    86.3
    """
    checks.positive(target_epsilon=target_epsilon, num_steps=num_steps)
    checks.delta(delta=delta)
    if math.isinf(target_epsilon):
        return 0.0
    if target_epsilon > LARGEST_TARGET:
        raise PrivacyError(
            f"epsilon must be at most {LARGEST_TARGET:g}, or inf for no noise, got {target_epsilon:g}: no number says "
            "how little noise that takes."
        )
    base = GaussianReleases(num_steps=num_steps, noise_multiplier=1.0, sampling_prob=sampling_prob)
    chance = -math.expm1(num_steps * math.log1p(-sampling_prob)) if sampling_prob < 1 else 1.0
    if delta >= chance:
        raise PrivacyError(
            f"An example is drawn at all with probability {chance:.3g} in {counted(num_steps, 'release')}, which is "
            f"not above delta = {delta:g}: any noise, even none, would meet the budget. Take a smaller delta."
        )
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
        bound = _bound(parts, accountant, interval)
        if relation == "replace_one":
            exact = "gdp" if accountant == "pld" else accountant
            unsampled = _epsilon(_unsampled(parts), delta, relation, exact, interval)
            return min(_replace_one_epsilon(bound, delta), unsampled)
        return bound.get_epsilon(delta)
    (part,) = parts  # `compose` makes one of all that are not sampled
    if relation == "replace_one":  # twice the sensitivity
        return _epsilon((_with_noise(part, part.noise_multiplier / 2),), delta, "add_remove", accountant, interval)
    if accountant == "gdp":
        return _gdp_epsilon(math.sqrt(part.num_steps) / part.noise_multiplier, delta)
    return _bound(parts, accountant, interval).get_epsilon(delta)


def _bound(parts: tuple[GaussianReleases, ...], accountant: str, interval: float) -> ComposedLosses | RenyiBound:
    """Compose the parts under add/remove."""
    return ComposedLosses(parts, interval) if accountant == "pld" else RenyiBound(parts, event(parts))


def _unsampled(parts: Iterable[GaussianReleases]) -> tuple[GaussianReleases, ...]:
    """Return the same releases of all units, which tell no less."""
    return compose(dataclasses.replace(part, sampling_prob=1.0) for part in parts)


def _replace_one_epsilon(bound: ComposedLosses | RenyiBound, delta: float) -> float:
    """Smallest 2 e with (1 + exp(e)) delta_add_remove(e) <= delta; see the module docstring."""

    def excess(half: float) -> float:
        shown = max(bound.get_delta(half), bound.smallest_delta)
        return math.log1p(math.exp(half)) + math.log(shown) - math.log(delta)

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
    root = float(brentq(lambda value: _gdp_delta(mu, value) - delta, 0.0, high, xtol=1e-12, rtol=1e-12))
    return root * (1 + 1e-10)


@functools.lru_cache(maxsize=1024)
def _calibrate(
    target: float, delta: float, base: GaussianReleases, relation: str, beside: tuple[GaussianReleases, ...]
) -> float:
    """Search the noise multiplier: coarse bracket first, then against the reported discretization."""

    def epsilon_of(interval: float) -> Callable[[float], float]:
        return lambda z: _claim(compose((_with_noise(base, z), *beside)), delta, relation, interval).epsilon

    is_sampled = any(part.sampling_prob < 1 for part in (base, *beside))
    coarsest = COARSE
    if beside:  # the noise of the base release may grow without end, and the others' part of epsilon stays
        if epsilon_of(FINE)(math.inf) >= LARGEST_SHARE * target:
            raise PrivacyError(
                f"The releases beside have epsilon {epsilon_of(FINE)(math.inf):.4g} alone, which leaves nothing of "
                f"{target:g}. Give them more noise, or take a larger epsilon."
            )
        coarsest = COARSE if epsilon_of(COARSE)(math.inf) < LARGEST_SHARE * target else FINE

    coarse, fine = (AtMost(epsilon_of(interval), target) for interval in (coarsest, FINE))
    high = 1.0
    if is_sampled and not beside:  # amplification divides the noise by about the sampling probability
        whole = _calibrate(target, delta, dataclasses.replace(base, sampling_prob=1.0), relation, ())
        high = 2.0 ** math.floor(math.log2(max(1.0, whole * base.sampling_prob)))
    while not coarse(high):
        high *= 2
    low = high / 2
    lowest = LOWEST_SAMPLED_NOISE if is_sampled else 1e-3
    while coarse(low) and low > lowest:
        high, low = low, low / 2
    if is_sampled and coarse(low):
        return lowest
    guess = coarse.smallest(low, high, 1e-3)
    # The fine discretization is tighter: the answer lies at or below the guess, and not far.
    far, below, ratio = guess, guess * 0.97, 0.97
    while fine(below):
        ratio *= ratio if below < 0.01 * far else 1
        guess, below = below, below * ratio
    while not fine(guess):
        below, guess = guess, guess * 1.01
    z = _round_up(fine.smallest(below, guess, 1e-4 if is_sampled else 1e-9))
    while epsilon_of(FINE)(z) > target:  # rounding alone never needs this; a guarantee must not rest on that
        z = _round_up(z * (1 + 1e-6))
    return z


def _round_up(value: float) -> float:
    """Round up to six significant digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 5)
    rounded = math.ceil(value / unit) * unit
    return float(f"{rounded if rounded >= value else rounded + unit:.6g}")


def _with_noise(releases: GaussianReleases, noise_multiplier: float) -> GaussianReleases:
    return dataclasses.replace(releases, noise_multiplier=noise_multiplier)
