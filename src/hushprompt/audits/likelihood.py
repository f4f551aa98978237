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
