"""Was an example in a noisy sum? The likelihood ratio, where all that an auditor does not know is taken for Gaussian.

A release is a sum of clipped gradients under noise. An auditor who knows what each example would add to it, but not
who was drawn, asks of every example how much likelier the sum is with it than without it (Neyman & Pearson 1933). The
other examples stand in the way; taking their sum for a Gaussian of the right mean and covariance turns the question
into a matched filter behind a whitening, in closed form for all examples at once. The Gaussian is a guess about what
disturbs, not an assumption of the bound that is drawn from the scores: any score is allowed there.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

SMALLEST_STD = 1e-3
"""Deviation, in clip norms, that stands for no noise at all: rounding."""
RANK_TOLERANCE = 1e-10
"""Share of the largest eigenvalue below which one is rounding."""
NUM_DRIFTS = 5
"""Directions of earlier releases that are taken out of a sum over many clients: what the others add again and again."""


def log_likelihood_ratios(
    released: Float[Tensor, " p"],
    contributions: Float[Tensor, "n p"],
    drawn: Float[Tensor, " n"],
    noise_std: float,
) -> Float[Tensor, " n"]:
    """Return ln of how much likelier a sum is with each example in it than without it.

    With A the contributions [n, p], p_y the probabilities, V = diag(p_y (1 - p_y)), the others' sum is Gaussian with
    mean sum of p_y a_y and covariance C = A' V A + s^2 I, less what x itself has in both. By Sherman, Morrison and
    Woodbury all ratios follow from (s^2 I + A A' V)^-1 applied to A (r - A' p) and to A A'.

    Args:
        released: [p] the noisy sum.
        contributions: [n, p] what each example adds where it is drawn.
        drawn: [n] probabilities with which each is in the sum, as far as the auditor knows.
        noise_std: deviation of the noise, in the units of the sum; what is unexplained beyond it counts as noise too.

    >>> log_likelihood_ratios(torch.tensor([1.0, 0.0]), torch.eye(2), torch.tensor([0.5, 0.5]), 1.0).round(decimals=3)
    tensor([ 0.5000, -0.5000], dtype=torch.float64)
    """
    sums, drawn = contributions.double(), drawn.double()
    variances = drawn * (1 - drawn)
    rest = released.double() - drawn @ sums
    gram = sums @ sums.T
    unexplained = float((rest.square().sum() - variances @ gram.diag()) / max(len(rest), 1))
    variance = max(noise_std**2, SMALLEST_STD**2, unexplained)
    system = variance * torch.eye(len(gram), dtype=torch.float64) + gram * variances
    solved = torch.linalg.solve(system, torch.cat([(sums @ rest)[:, None], gram], dim=1))
    fit, length = solved[:, 0], solved[:, 1:].diag()  # a C^-1 (r - mean), a C^-1 a
    return (fit + (drawn - 0.5) * length) / (1 - variances * length).clamp(min=1e-9)


class SumTest:
    """Was one example in a noisy sum, where what every other example adds to it is known, and who is drawn is not?

    The others' sum counts as Gaussian, with covariance C = q (1 - q) A' A + s^2 I. In an orthonormal basis U of its
    rows' span, with eigenvalues l, a' C^-1 r = (a r - sum of l / (l + s^2) (a u) (r u)) / s^2 for any noise s at once.
    """

    def __init__(self, target: Float[Tensor, " p"], others: Float[Tensor, "n p"], drawn: float) -> None:
        """Begin.

        Args:
            target: [p] what the example would add.
            others: [n, p] what the others would add.
            drawn: probability with which each is in the sum.
        """
        self._target, others = target.double(), others.double()
        self._mean = drawn * others.sum(dim=0)
        values, vectors = torch.linalg.eigh(others @ others.T)
        is_real = values > RANK_TOLERANCE * values.max().clamp(min=1e-30) if len(values) else values > 0
        self._basis = others.T @ (vectors[:, is_real] / values[is_real].sqrt())  # [p, k]
        self._variances = drawn * (1 - drawn) * values[is_real]

    def ratio(self, summed: Float[Tensor, " p"], noise_std: float) -> float:
        """Return ln of how much likelier a sum is with the example than without it; what is unexplained is noise too.

        Args:
            summed: [p] the sum, in the units of what examples add.
            noise_std: deviation of the noise.
        """
        rest = summed.double() - self._mean
        outside = float((rest @ rest - (rest @ self._basis).square().sum()).clamp(min=0.0))
        unexplained = outside / max(len(rest) - self._basis.shape[1], 1)
        variance = max(noise_std**2, SMALLEST_STD**2, unexplained)
        return self._inner(rest, variance) - self._inner(self._target, variance) / 2

    def distance(self, noise_std: float) -> float:
        """Return a' C^-1 a: by how many deviations, squared, the example moves what tells it."""
        return self._inner(self._target, max(noise_std, SMALLEST_STD) ** 2)

    def _inner(self, other: Float[Tensor, " p"], variance: float) -> float:
        """Return a' C^-1 b, with noise of a variance."""
        shares = self._variances / (self._variances + variance)
        taken_out = (shares * (self._target @ self._basis) * (other.double() @ self._basis)).sum()
        return float(self._target @ other.double() - taken_out) / variance


def drifts(earlier: list[Float[Tensor, " p"]]) -> Float[Tensor, "k p"]:
    """Return orthonormal directions in which earlier sums were the largest."""
    return torch.linalg.svd(torch.stack(earlier).double(), full_matrices=False).Vh[:NUM_DRIFTS]


def without(rows: Float[Tensor, "*n p"], directions: Float[Tensor, "k p"]) -> Float[Tensor, "*n p"]:
    """Take orthonormal directions out of rows."""
    cleaned: Tensor = rows.double() - (rows.double() @ directions.T) @ directions
    return cleaned


def over_steps(ratios: list[Float[Tensor, " n"]], sampling_prob: float) -> Float[np.ndarray, " n"]:
    """Add up steps in which an example that is there takes part with a probability: ln(1 - q + q e^s)."""
    absent, present = math.log1p(-sampling_prob) if sampling_prob < 1 else -math.inf, math.log(sampling_prob)
    return np.sum([np.logaddexp(absent, present + ratio.numpy()) for ratio in ratios], axis=0)
