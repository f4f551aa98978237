"""Low rank plus residual: l = u v + r, with u orthonormal (DP-FPL, section 3; RGP, Yu et al. 2021, arXiv:2106.09352).

Everything here is a function of the personal prompt, which depends on data only through released gradients, and of
data-independent randomness: it is post-processing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Form = Literal["projection", "orthonormal", "svd"]


@dataclass(frozen=True)
class Factors:
    """A personal prompt [t, e] as `u @ v + residual`."""

    u: Float[Tensor, "t r"]
    """Orthonormal columns."""
    v: Float[Tensor, "r e"]
    residual: Float[Tensor, "t e"]


def factorize(
    local: Float[Tensor, "t e"], rank: int, *, form: Form, power_iterations: int, rng: np.random.Generator
) -> Factors:
    """Split a personal prompt into low-rank factors and a residual; `u @ v + residual` gives it back.

    Args:
        local: [t, e] the personal prompt l.
        rank: r, at most min(t, e).
        form: "projection": u from power iterations, v = u^T l, the part of l in the span of u. "orthonormal": v is
            made orthonormal too, as the authors' code does; then |u v| = sqrt(r) whatever l is, and the residual
            takes the difference. "svd": the best rank-r approximation, u = U_r and v = S_r V_r^T (reference).
        power_iterations: rounds of `u = orth(l v^T)`, at least 1; unused for "svd".
        rng: stream for the Gaussian start of the power iteration.
    """
    if form == "svd":
        left, values, right = torch.linalg.svd(local, full_matrices=False)
        u, v = left[:, :rank], values[:rank, None] * right[:rank]
        return Factors(u, v, local - u @ v)
    start = rng.standard_normal((local.shape[1], rank))
    right_basis = torch.from_numpy(start).to(local)
    for _ in range(power_iterations):
        u = orthonormal_columns(local @ right_basis)
        right_basis = local.T @ u  # [e, r]
    v = right_basis.T if form == "projection" else orthonormal_columns(right_basis).T
    return Factors(u, v, local - u @ v)


def orthonormal_columns(matrix: Float[Tensor, "m r"]) -> Float[Tensor, "m r"]:
    """Orthonormalize the columns, in float64, with the sign of Gram-Schmidt (a positive diagonal of R)."""
    q, triangle = torch.linalg.qr(matrix.double())
    sign = torch.where(triangle.diagonal() < 0, -1.0, 1.0)
    return (q * sign).to(matrix)


def factor_gradients(
    u: Float[Tensor, "t r"], v: Float[Tensor, "r e"], grads: Float[Tensor, "b t e"]
) -> Float[Tensor, "b p"]:
    """Return, in one row, each example's gradients in the factors from its gradient G in u v: G v^T and u^T G."""
    return torch.cat([(grads @ v.T).flatten(1), (u.T @ grads).flatten(1)], dim=1)


def unstack(
    u: Float[Tensor, "t r"], v: Float[Tensor, "r e"], row: Float[Tensor, " p"]
) -> tuple[Float[Tensor, "t r"], Float[Tensor, "r e"]]:
    """Take apart what `factor_gradients` put in one row."""
    part_u, part_v = row.split([u.numel(), v.numel()])
    return part_u.view_as(u), part_v.view_as(v)
