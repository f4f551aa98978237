"""The one place where privacy noise is drawn: repeatable noise for simulations, secure noise for releases.

A simulation draws floating-point Gaussians from a generator that follows from the run's seed. A release must not: who
knows the seed removes the noise, and floating-point Gaussians leave a pattern in the last bits that can give a value
away (Mironov 2012, "On significance of the least significant bits for differential privacy"). `add_secure_gaussian`
therefore rounds to a grid and adds whole numbers, drawn exactly from the discrete Gaussian (Canonne, Kamath, Steinke
2020, arXiv:2004.00010) out of bytes of the operating system's cryptographic generator.
"""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt64
from torch import Tensor

from hushprompt import checks
from hushprompt.errors import PrivacyError
from hushprompt.privacy.system_random import ByteSource, uniform, uniform_below

GRID_BITS = 30
"""The noise's standard deviation is 2^30 steps of the grid, so rounding to the grid costs next to nothing."""
FARTHEST = 2**48
"""Grid steps from zero at which a value is held; a clipped sum of 100,000 contributions stays within."""


def add_gaussian(value: Tensor, std: float, rng: np.random.Generator) -> Tensor:
    """Add independent N(0, std^2) to every entry.

    The draw is made in float64 on the CPU and rounded once to the dtype of `value`, so results do not depend on
    the device. A generator seeded from a run's seed makes a simulation repeatable and is not a release.

    Args:
        value: [*p] what is to be protected, float32 or wider.
        std: standard deviation, in the units of `value`; 0 adds nothing.
        rng: stream of its own for this release; never shared with another draw.

    Raises:
        ConfigError: `std` is negative, NaN or infinite.
        TypeError: `value` is narrower than float32.
    """
    _check(value, std)
    if std == 0:
        return value
    noise = torch.from_numpy(rng.normal(0.0, std, size=tuple(value.shape)))
    return value + noise.to(dtype=value.dtype, device=value.device)


def add_secure_gaussian(value: Tensor, std: float, sensitivity: float, read: ByteSource = os.urandom) -> Tensor:
    """Round to a grid and add independent discrete Gaussians, for a release that leaves.

    Guarantee: with noise multiplier z = std / sensitivity, a Gaussian mechanism of multiplier z. Rounding moves each of
    d entries by at most half a step g, so two neighboring sums differ by at most sensitivity + sqrt(d) g; the noise is
    made larger by as much, which is about z sqrt(d) / 2^30 of it. Whole numbers are added exactly, and what follows is
    post-processing. The discrete Gaussian satisfies the Renyi bounds of the continuous one (Canonne et al. 2020), and
    the odds of any value differ from those under the rounded continuous one by a factor within 1e-16 of 1, so every
    epsilon of a continuous Gaussian holds up to 1.2e-16 an entry and release. docs/privacy.md has the sum.

    Args:
        value: [*p] clipped sum, float64: its own rounding must be small against the margin that clipping leaves.
        std: standard deviation before the correction, in the units of `value`; 0 adds nothing.
        sensitivity: L2 sensitivity of `value`, greater than 0.
        read: source of bytes, see `system_random.py`; tests give another one.

    Raises:
        ConfigError: `std` is negative, NaN or infinite.
        PrivacyError: so much noise on so many entries that the grid would be too coarse.
    """
    _check(value, std)
    checks.positive(sensitivity=sensitivity)
    if std == 0:
        return value
    # 1.1: a half for each of two neighbors, and the rounding of the division below, at most 2^-5 steps.
    lost = 1.1 * (std / sensitivity) * math.sqrt(value.numel()) / 2**GRID_BITS
    if lost > 0.01:
        raise PrivacyError(
            f"A noise multiplier of {std / sensitivity:.3g} on {value.numel()} values is too much for secure noise: "
            "rounding to its grid would cost over 1 %. Use a larger privacy.epsilon."
        )
    step = std / (1 - lost) / 2**GRID_BITS
    on_grid = (value.double() / step).round().clamp(-FARTHEST, FARTHEST).long().cpu()
    noise = torch.from_numpy(discrete_gaussian(value.numel(), GRID_BITS, read)).reshape(value.shape)
    return ((on_grid + noise).double() * step).to(dtype=value.dtype, device=value.device)


def share_of_noise(
    size: int, rng: np.random.Generator | None, read: ByteSource = os.urandom
) -> Int64[np.ndarray, " l"]:
    """Return one client's share of the noise on a sum, in steps of the sum's grid: whole numbers of deviation 2^30.

    Args:
        size: entries of the sum.
        rng: stream of a simulation, which gets rounded Gaussians; None: exact discrete Gaussians, for a release.
        read: source of bytes of the latter.
    """
    if rng is None:
        return discrete_gaussian(size, GRID_BITS, read)
    return np.rint(rng.normal(0.0, 2.0**GRID_BITS, size=size)).astype(np.int64)


def discrete_gaussian(size: int, bits: int, read: ByteSource) -> Int64[np.ndarray, " n"]:
    """Draw whole numbers v with probability proportional to exp(-v^2 / (2 s^2)), s = 2^bits, exactly.

    Source: Karney 2016 (arXiv:1303.6257), Algorithm D: with |v| = s (k + x), 0 <= x < 1, the weight is exp(-k^2 / 2)
    exp(-k x) exp(-x^2 / 2). Every factor is a Bernoulli trial whose odds are fractions over powers of two, made by
    comparing whole numbers, so no floating-point number is involved.

    Args:
        size: how many.
        bits: at most 30, so that all fractions fit into 64 bits.
        read: source of uniform bytes.

    >>> discrete_gaussian(0, 30, os.urandom)
    array([], dtype=int64)
    """
    assert 0 <= bits <= 30, "x^2 / 2 has 2 bits + 1 binary digits"
    drawn = np.zeros(size, dtype=np.int64)
    missing = np.arange(size)
    while missing.size:
        k = _half_gaussian(missing.size, read)
        j = uniform(missing.size, bits, read)  # x = j / 2^bits
        is_negative = uniform(missing.size, 1, read) == 1
        keep = _bernoulli_exp(j * j, 2 * bits + 1, read)
        keep &= ~(is_negative & (k == 0) & (j == 0))  # zero has one sign
        for trial in range(int(k.max(initial=0))):
            asked = np.flatnonzero(keep & (k > trial))
            keep[asked] = _bernoulli_exp(j[asked], bits, read)
        size_of_v = (k << bits) + j.astype(np.int64)
        drawn[missing[keep]] = np.where(is_negative, -size_of_v, size_of_v)[keep]
        missing = missing[~keep]
    return drawn


def _half_gaussian(size: int, read: ByteSource) -> Int64[np.ndarray, " n"]:
    """Draw k >= 0 with probability proportional to exp(-k^2 / 2): geometric, then k (k - 1) more trials."""
    drawn = np.zeros(size, dtype=np.int64)
    missing = np.arange(size)
    while missing.size:
        k = np.zeros(missing.size, dtype=np.int64)
        going = np.arange(missing.size)
        while going.size:
            going = going[_bernoulli_exp(np.ones(going.size, dtype=np.uint64), 1, read)]
            k[going] += 1
        keep = np.ones(missing.size, dtype=bool)
        for trial in range(int((k * (k - 1)).max(initial=0))):
            asked = np.flatnonzero(keep & (k * (k - 1) > trial))
            keep[asked] = _bernoulli_exp(np.ones(asked.size, dtype=np.uint64), 1, read)
        drawn[missing[keep]] = k[keep]
        missing = missing[~keep]
    return drawn


def _bernoulli_exp(numerators: UInt64[np.ndarray, " n"], bits: int, read: ByteSource) -> Bool[np.ndarray, " n"]:
    """Return True with probability exp(-numerator / 2^bits), each fraction at most 1.

    Source: Canonne et al. 2020, Algorithm 1: count how long trials with odds fraction / 1, fraction / 2, ... succeed.
    """
    is_true = np.zeros(numerators.size, dtype=bool)
    going, count = np.arange(numerators.size), 1
    while going.size:
        succeeds = uniform(going.size, bits, read) < numerators[going]
        succeeds &= uniform_below(going.size, count, read) == 0
        is_true[going[~succeeds]] = count % 2 == 1
        going, count = going[succeeds], count + 1
    return is_true


def _check(value: Tensor, std: float) -> None:
    """Refuse what no noise can be added to."""
    checks.non_negative(noise_std=std)
    checks.finite(noise_std=std)
    if value.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"noise is added in float32 or wider, got {value.dtype}; convert the sum first.")
