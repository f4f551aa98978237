"""Privacy loss distributions of Gaussian releases, by dp_accounting, and where they may be believed.

**The smallest delta.** T-fold composition raises a Fourier transform to the power T. Rounding leaves an error of about
u = 2.2e-16 in each of its values, whose absolute value is at most 1, so about T u in the composed one; measured, the
error of a tail's probability stays below T u / 3 (z from 0.05 to 10,000, T to 10^6). Every composition also counts
1e-15 as infinite loss, and every release about 1e-22. `smallest_delta` is a thousand times the larger of the two: above
it rounding moves delta by less than one part in a thousand. Below it nothing is claimed by this accountant.

**The grid.** Losses are rounded to multiples of a step, pessimistically, by the method of Connect the Dots
(arXiv:2207.04380). Releases of little noise have losses in the thousands; there the step grows, so that one release
has 40,000 values at most and a composition two million, which bounds time and memory. Where the losses of one release
spread over less than an eighth of a step, the step shrinks to an eighth to a quarter of that spread.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from dp_accounting import pld
from jaxtyping import Float

from hushprompt.privacy.releases import GaussianReleases

FINE = 1e-3
"""Discretization of privacy losses for every value that is reported."""
ROUNDING = 2.3e-16
"""What one composition adds to the rounding error of a tail's probability, at most."""
MARGIN = 1000
"""How far delta must lie above rounding."""
LOWEST_DELTA = 1e-11
"""Of any composition, however short."""
MAX_VALUES, MAX_SPREAD = 4e4, 1e5
"""Steps of the grid in the largest loss of one release, and in a standard deviation of the composed loss."""
NARROWEST = 1e-6
"""Spread of one release's losses below which differences on a grid would drown in rounding."""
LARGEST_LOSS = 1000.0
"""Of one release; a louder one tells almost everything, and its losses overflow."""


def smallest_delta(parts: Iterable[GaussianReleases]) -> float:
    """Return the smallest delta at which rounding does not matter; see the module docstring."""
    return max(LOWEST_DELTA, MARGIN * ROUNDING * sum(part.num_steps for part in parts if part.sampling_prob < 1))


def is_proven(parts: Sequence[GaussianReleases], delta: float) -> bool:
    """True where losses that are composed numerically give an epsilon that rounding cannot make too small."""
    noisy = [part for part in parts if part.noise_multiplier]
    is_on_grid = all(_largest_loss(_as_one(part)) <= LARGEST_LOSS for part in noisy) and _narrowest(noisy) >= NARROWEST
    return is_on_grid and delta >= smallest_delta(parts)


def is_coarse(parts: Sequence[GaussianReleases]) -> bool:
    """True where one release's losses spread over few steps of the grid, so that rounding them up costs."""
    return grid(parts) > _narrowest(parts) / 2


def is_narrow(parts: Sequence[GaussianReleases]) -> bool:
    """True where one release's losses spread over less than an eighth of a step of the reported grid."""
    return _narrowest(parts) < FINE / 8


def _as_one(part: GaussianReleases) -> tuple[float, float]:
    """Return noise multiplier and sampling probability of what is put on the grid: one release, or all unsampled."""
    if part.sampling_prob < 1:
        return part.noise_multiplier, part.sampling_prob
    return part.noise_multiplier / math.sqrt(part.num_steps), 1.0


def _largest_loss(release: tuple[float, float]) -> float:
    """Return the privacy loss of one release ten standard deviations from its mean, without sampling."""
    return (1 + 20 * release[0]) / (2 * release[0] ** 2)


def _spread(part: GaussianReleases) -> float:
    """Return about the standard deviation of one sampled release's loss, or more where there is little noise."""
    z, q = part.noise_multiplier, part.sampling_prob
    return min(q * math.sqrt(math.expm1(min(z**-2, 100.0))), math.sqrt(q) * (1 / z + z**-2 / 2))


def _narrowest(parts: Sequence[GaussianReleases]) -> float:
    """Return the smallest spread of a sampled release's losses; inf without sampling."""
    return min((_spread(part) for part in parts if part.sampling_prob < 1), default=math.inf)


def grid(parts: Sequence[GaussianReleases], interval: float = FINE) -> float:
    """Return the step of the grid: `interval`, or another one where the losses need it."""
    spread = _narrowest(parts)
    if spread < (FINE / 8 if interval == FINE else FINE / 64):  # a search begins on a coarse grid
        interval = 2.0 ** math.floor(math.log2(spread / 4))
    widest = max((_largest_loss(_as_one(part)) for part in parts), default=0.0)
    total = max((_spread(part) * math.sqrt(part.num_steps) for part in parts if part.sampling_prob < 1), default=0.0)
    return max(interval, widest / MAX_VALUES, total / MAX_SPREAD)


class ComposedLosses:
    """What PLDAccountant returns, bit for bit, at a third of the cost where only the number of steps varies."""

    def __init__(self, parts: Iterable[GaussianReleases], interval: float) -> None:
        """Compose the parts; one sampled release, the costly part of it, does not depend on the number of steps."""
        parts = tuple(parts)
        self.smallest_delta = smallest_delta(parts)
        interval = grid(parts, interval)
        self._losses = pld.privacy_loss_distribution.identity(value_discretization_interval=interval)
        for part in parts:
            losses = _one_release(*_as_one(part), interval)
            if part.sampling_prob < 1:
                losses = losses.self_compose(part.num_steps)
            self._losses = self._losses.compose(losses)

    def get_epsilon(self, delta: float) -> float:
        """Return the epsilon for a delta."""
        with np.errstate(over="ignore"):  # of losses near 700; what overflows is infinite, and so another bound's turn
            return float(self._losses.get_epsilon_for_delta(delta))

    def get_delta(self, epsilon: float) -> float:
        """Return the delta for an epsilon."""
        return float(self._losses.get_delta_for_epsilon(epsilon))


class GaussianLosses(pld.privacy_loss_mechanism.GaussianPrivacyLoss):  # type: ignore[misc]  # it has no types
    """Privacy losses of one Gaussian release, bit for bit those of dp_accounting, which inverts them one at a time."""

    def get_delta_for_epsilon(self, epsilon: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Return [n] the deltas for [n] epsilons, under Poisson sampling."""
        q, is_add = self.sampling_prob, self.adjacency_type is pld.privacy_loss_mechanism.AdjacencyType.ADD
        sign, edge = (-1, -math.log(1 - q)) if is_add else (1, math.log(1 - q))
        inside = epsilon < -math.log1p(-q) if is_add else epsilon > math.log1p(-q)
        deltas = np.zeros_like(epsilon) if is_add else -np.expm1(epsilon)
        losses = epsilon[inside]
        is_edge = np.abs(losses - edge) <= 1e-9 * np.maximum(np.abs(losses), abs(edge))  # as math.isclose has it
        with np.errstate(over="ignore", divide="raise", invalid="raise"):
            whole = sign * losses[~is_edge] + np.log(1 / q)
            unsampled = np.full_like(losses, -sign * math.inf)
            unsampled[~is_edge] = sign * (whole + np.log1p(-np.exp(np.log(1 / q - 1) - whole)))
        unsampled[losses == 0] = sign * np.log(1 / q + (1 - 1 / q))
        cutoffs = -0.5 * self.sensitivity - unsampled * self._standard_deviation**2 / self.sensitivity
        cutoffs = self.sensitivity + cutoffs if is_add else cutoffs
        deltas[inside] = self.mu_upper_cdf(cutoffs) - np.exp(losses + self.mu_lower_log_cdf(cutoffs))
        return np.clip(deltas, 0, 1)


@functools.lru_cache(maxsize=16)
def _one_release(noise_multiplier: float, sampling_prob: float, interval: float) -> Any:
    """Return dp_accounting's privacy losses of one release, under add/remove."""
    if sampling_prob == 1:
        return pld.privacy_loss_distribution.from_gaussian_mechanism(
            standard_deviation=noise_multiplier, value_discretization_interval=interval
        )
    kinds = pld.privacy_loss_mechanism.AdjacencyType
    both = (_on_grid(noise_multiplier, sampling_prob, interval, kind) for kind in (kinds.REMOVE, kinds.ADD))
    return pld.privacy_loss_distribution.PrivacyLossDistribution(*both)


def _on_grid(noise_multiplier: float, sampling_prob: float, interval: float, kind: Any) -> Any:
    """Return the losses of one sampled release where an example is added, or removed, on the grid."""
    losses = GaussianLosses(noise_multiplier, sampling_prob=sampling_prob, adjacency_type=kind)
    bounds = losses.connect_dots_bounds()
    low, high = math.floor(bounds.epsilon_lower / interval), math.ceil(bounds.epsilon_upper / interval)
    deltas = losses.get_delta_for_epsilon(np.arange(low, high + 1) * interval)
    return pld.pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(interval, low, high, deltas)
