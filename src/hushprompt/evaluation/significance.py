"""Is one row better than another? Tests on pairs, with the seed as the unit.

Within one seed all clients share a partition, a global prompt and its noise, so their differences are not independent
of each other, and counting each client as an observation of its own would find differences that are not there. Each
client is compared with itself, the differences are averaged within a seed, and the test sees one number a seed:
Student's t on them is the paired t test on clients with standard errors clustered by seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Test = Literal["t", "sign_flip"]
CONFIDENCE = 0.95
NUM_FLIPS = 1 << 16
"""Sign flips that are tried: all of them up to 16 seeds, beyond a fixed sample."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Difference between an arm and the one that it is compared with."""

    mean: float
    """Mean over seeds, in the score's own unit."""
    low: float
    high: float
    """Student's interval of 95 % for that mean; infinite ends with one seed."""
    p: float | None
    """Two-sided; None where nothing can be said: one seed, or equal differences with no spread."""
    num_seeds: int


def compare(differences: Sequence[float], test: Test) -> Difference:
    """Test whether the mean of paired differences, one a seed, is zero.

    Args:
        differences: [number of seeds] row minus reference, each a mean over clients.
        test: "t": Student's paired t test; assumes that differences of seeds are about normal. "sign_flip": exact
            permutation test that assumes only that they are symmetric; with n seeds its p is at least 2 / 2^n.

    >>> compare([0.01, 0.02, 0.03], "sign_flip").p
    0.25
    """
    values = np.asarray(differences, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return Difference(mean=mean, low=-np.inf, high=np.inf, p=None, num_seeds=len(values))
    if float(values.std(ddof=1)) <= 1e-12:  # equal seed by seed
        return Difference(mean=mean, low=mean, high=mean, p=1.0 if abs(mean) <= 1e-12 else None, num_seeds=len(values))
    student = stats.ttest_1samp(values, 0.0)
    low, high = student.confidence_interval(CONFIDENCE)
    p = float(student.pvalue) if test == "t" else _sign_flip(values)
    return Difference(mean=mean, low=float(low), high=float(high), p=p, num_seeds=len(values))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p values for their number, as Holm (1979) does: the smallest of m by m, the next by m - 1, and so on.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[index] = largest
    return corrected


def description(test: Test, num_seeds: int) -> str:
    """Say in one sentence what was tested, and on what."""
    if test == "t":
        how = "Student's paired t test, which takes differences of seeds to be about normal"
    else:
        how = f"exact sign flips of whole seeds, whose p is at least {2 / 2**num_seeds:.3g} with {num_seeds} seeds"
    return (
        "Differences: each client with itself (same seed, same data), averaged within a seed; unit of the test: the "
        f"seed; {how}; two-sided, p corrected for the number of rows by Holm's method; * is p < 0.05. Seeds vary "
        "clients, batches, noise and start, not the data set: what is said holds for this data set."
    )


def _sign_flip(values: np.ndarray) -> float:
    """Return how often random signs make the mean at least as far from zero; what was seen counts as one of them."""
    flips = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=NUM_FLIPS, rng=np.random.default_rng(0)
    )
    return float(flips.pvalue)
