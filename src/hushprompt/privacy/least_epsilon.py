"""An epsilon below which no claim can be true, from a test that somebody could really make; exact, without any FFT.

After each release look only at whether it lies beyond a threshold. Over T releases that is one binomial count, with
probabilities a and b on two neighboring data sets, and whoever looks at less learns less: for every number k,
P(count >= k) <= e^epsilon Q(count >= k) + delta must hold, so epsilon >= ln((P - delta) / Q). It is about a fifth
below the true epsilon, more where sampling leaves a release to chance, and it is what accountants are checked against.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int64
from scipy.stats import binom, norm

THRESHOLDS = np.array([-1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0])
"""In standard deviations of the noise, from the middle between the two means."""
LEVELS = np.array([1.03, 1.1, 1.3, 2.0, 4.0, 10.0, 100.0, 1e4, 1e6])
"""Probabilities of the count under P that are tried, as multiples of delta."""


def least_epsilon(*, noise_multiplier: float, sampling_prob: float, num_steps: int, delta: float) -> float:
    """Return a lower bound of epsilon of sampled Gaussian releases, for an example more or less, or exchanged.

    >>> 0.3 < least_epsilon(noise_multiplier=10.0, sampling_prob=1.0, num_steps=1, delta=1e-5) < 0.38
    True
    """
    z, q, bounds = noise_multiplier, sampling_prob, [0.0]
    edges = 0.5 / z + THRESHOLDS
    for beyond in (norm.sf, norm.cdf):  # far on the side of the example's gradient, and far on the other
        without = beyond(edges if beyond is norm.sf else 1 / z - edges)
        with_it = (1 - q) * without + q * beyond(edges - 1 / z if beyond is norm.sf else -edges)
        top, bottom = (with_it, without) if beyond is norm.sf else (without, with_it)
        levels = np.minimum(LEVELS * delta, 0.999)[:, None]
        counts = _counts(levels, num_steps, top)
        gain, cost = binom.sf(counts, num_steps, top) - delta, binom.logsf(counts, num_steps, bottom)
        is_usable = (gain > 1e-3 * delta) & np.isfinite(cost)
        bounds.extend(np.log(gain[is_usable]) - cost[is_usable])
    return float(max(bounds))


def _counts(
    levels: Float[np.ndarray, "l 1"], num_steps: int, probabilities: Float[np.ndarray, " t"]
) -> Int64[np.ndarray, "l t"]:
    """Return the largest number that a binomial count exceeds with more than the level's probability, from -1 up.

    By bisection: `binom.isf` finds no such number for some levels near 1e-15, and warns.
    """
    low = np.full((len(levels), len(probabilities)), -1)
    high = np.full_like(low, num_steps)
    while (high - low > 1).any():
        middle = (low + high) // 2
        is_exceeded = binom.sf(middle, num_steps, probabilities) > levels
        low, high = np.where(is_exceeded, middle, low), np.where(is_exceeded, high, middle)
    return low
