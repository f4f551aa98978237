"""How the task's own images spread within classes, where the public metric is off: from one noisy Gram matrix.

Source: linear discriminant analysis (Fisher 1936), with a covariance that is shrunk to the public one (James & Stein
1961) and widened by what noise may have taken from it.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from hushprompt import checks

LEAST_SPREAD = 0.02
"""Least variance of a direction, in units of the public mean one."""
CLEAR = 2.0
"""A matrix no further from the public one than this many times the noise's expected square counts as noise alone."""


def own_precision(
    gram: Float64[Tensor, "r r"], num_images: float, noise_std: float, usual: float
) -> Float64[Tensor, "r r"]:
    """Return P = (w + a) (S' + a)^-1, by which class means become weights: the identity where noise drowns the matrix.

    S = gram / n, made symmetric; S' = w + keep (S - w) with keep = max(0, 1 - 2 E|N|^2 / |S - w|^2), N the noise in S;
    w is the mean variance within public classes, a the spectral norm that noise is expected to have, s sqrt(2r) / n.

    Args:
        gram: [r, r] noisy sum of the outer products of clipped residuals from estimated class means.
        num_images: n, the public number of images of all clients, > 0.
        noise_std: s, standard deviation of the noise in an entry of `gram`; 0 without noise.
        usual: w, from the public metric.
    """
    checks.positive(num_images=num_images, usual=usual)
    std, rank = noise_std / num_images, len(gram)
    offset = (gram + gram.T) / (2 * num_images) - usual * torch.eye(rank, dtype=torch.float64)
    expected = std**2 * rank * (rank + 1) / 2
    keep = 1 - min(1.0, CLEAR * expected / max(float(offset.square().sum()), 1e-12))
    values, vectors = torch.linalg.eigh(offset)
    widened = std * math.sqrt(2 * rank)
    inverse: Tensor = (usual + widened) / (usual + keep * values + widened).clamp(min=LEAST_SPREAD * usual)
    return (vectors * inverse) @ vectors.T
