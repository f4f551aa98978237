"""Per-example clipping: the one place where a contribution gets its bound.

Source: Abadi et al. 2016 (arXiv:1607.00133), Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from hushprompt import checks
from hushprompt.errors import DataError, PrivacyError

RAMP = 0.1
"""Width of the ramp from counted to not counted, of the clip norm."""


@dataclass(frozen=True)
class ClippedSum:
    """A sum of clipped contributions, not yet private, that knows its own sensitivity.

    It must not leave the party that computed it except to a party named as trusted in the privacy statement.
    """

    value: Float[Tensor, "*p"]
    """[*p] the sum."""
    sensitivity: float
    """L2 distance that adding or removing one contribution can move `value`, in gradient units."""
    centered_count: float = field(default=0.0, repr=False)
    """Sum over contributions of 1/2 for one far inside the clip norm, -1/2 for one far outside, and between them on a
    ramp: for adaptive clip norms."""
    rows_released: Bool[Tensor, " c"] | None = field(default=None, repr=False)
    """Where the first axis is classes: those that this party may publicly have. None: all."""


def clipped_sum(grads: Float[Tensor, "b *p"], clip_norm: float) -> ClippedSum:
    """Clip each example's gradient to an L2 ball, then add them up.

    Source: Abadi et al. 2016 (arXiv:1607.00133), Algorithm 1, "Clip gradient".
    Guarantee: the sum has L2 sensitivity `clip_norm` when one example is added or removed, up to float32
    rounding of the sum. A gradient with a NaN or infinite entry, or with a norm that overflows, counts as zero.

    Args:
        grads: [b, *p] one gradient per example; b may be 0.
        clip_norm: radius of the ball, in gradient units; greater than 0.

    Raises:
        ConfigError: `clip_norm` is not one that `checks.clip_norms` takes.

    >>> clipped_sum(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), clip_norm=1.0)
    ClippedSum(value=tensor([0.6000, 0.8000]), sensitivity=1.0)
    """
    checks.clip_norms(clip_norm=clip_norm)
    scale = clip_factors(grads, clip_norm)
    finite = grads.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    centered_count = float((unclipped_shares(grads, clip_norm) - 0.5).sum())
    return ClippedSum(torch.einsum("b,b...->...", scale, finite), clip_norm, centered_count)


def clipped_class_sums(
    rows: Float[Tensor, "n r"], labels: Int64[Tensor, " n"], num_classes: int, clip_norm: float
) -> ClippedSum:
    """Clip each row to an L2 ball, then add it into the sum of its own class, in float64.

    Guarantee: one row lies in one class's sum, so adding or removing it moves all sums together by at most `clip_norm`
    in L2 norm; exchanging its label or its values moves them by at most twice that. A row with a NaN or infinite entry,
    or with a norm that overflows, counts as zero.

    Args:
        rows: [n, r] one row an example, each a function of that example alone; n may be 0.
        labels: [n] from 0 to `num_classes` - 1.
        num_classes: c, public: a class without rows has a sum of zeros.
        clip_norm: radius of the ball, in units of the rows; greater than 0.

    Returns:
        The sums [c, r] and their sensitivity.

    Raises:
        ConfigError: `clip_norm` is not one that `checks.clip_norms` takes.
        DataError: there is not one label within range for each row.

    >>> clipped_class_sums(torch.tensor([[3.0, 4.0], [0.6, 0.0]]), torch.tensor([1, 1]), 2, clip_norm=1.0).value
    tensor([[0.0000, 0.0000],
            [1.2000, 0.8000]], dtype=torch.float64)
    """
    checks.clip_norms(clip_norm=clip_norm)
    if labels.shape != rows.shape[:1] or bool(((labels < 0) | (labels >= num_classes)).any()):
        raise DataError(f"Every row needs a label from 0 to {num_classes - 1}. Check the labels of the private images.")
    wide = rows.double()
    clipped = clip_factors(wide, clip_norm)[:, None] * wide.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return ClippedSum(wide.new_zeros(num_classes, rows.shape[1]).index_add_(0, labels, clipped), clip_norm)


def clipped_gram(rows: Float[Tensor, "n r"], clip_norm: float) -> ClippedSum:
    """Clip each row x to norm 1, then add up C x x^T, in float64.

    Guarantee: |x x^T| = |x|^2 <= 1 in the Frobenius norm, so one row moves the sum by at most C. A row with a NaN or
    infinite entry counts as zero.

    Args:
        rows: [n, r] one row an example, each a function of that example alone; n may be 0.
        clip_norm: C, greater than 0.

    Returns:
        The symmetric sum [r, r] and its sensitivity C.

    >>> clipped_gram(torch.tensor([[3.0, 4.0]]), clip_norm=1.0).value
    tensor([[0.3600, 0.4800],
            [0.4800, 0.6400]], dtype=torch.float64)
    """
    checks.clip_norms(clip_norm=clip_norm)
    wide = rows.double()
    clipped = clip_factors(wide, 1.0)[:, None] * wide.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return ClippedSum(clip_norm * clipped.T @ clipped, clip_norm)


def unclipped_shares(grads: Float[Tensor, "b *p"], clip_norm: float) -> Float64[Tensor, " b"]:
    """Return [b] how far each gradient counts as not clipped: 1 to 0 on a ramp around the clip norm.

    The last bits of a gradient depend on the batch that it is computed in. A ramp moves by as little as they do; a step
    at the clip norm would turn them into whole contributions to the count.
    """
    norms = grads.flatten(1).double().norm(dim=1) / clip_norm
    shares = (0.5 + (1 - norms) / RAMP).clamp(0.0, 1.0)
    return torch.where(norms.isfinite(), shares, torch.zeros_like(shares))


def as_one_contribution(grads: Float[Tensor, "b *p"]) -> Float[Tensor, "r *p"]:
    """Make a client's per-example gradients its one contribution to a step: their mean [1, *p].

    Nothing about the mean is bounded: it is clipped as one row, and one client then moves a sum by at most the clip
    norm, whatever its data and however many rows there were. An empty batch contributes nothing, [0, *p], as a client
    does that is not there: a row of zeros would be counted as one that was not clipped, and the count that adaptive
    clip norms follow could tell the two apart by twice its sensitivity.
    """
    return grads.mean(dim=0, keepdim=True) if len(grads) else grads


def group_contributions(
    grads: Float[Tensor, "b *p"], groups: Int64[Tensor, " b"], clip_norm: float
) -> Float[Tensor, "g *p"]:
    """Make the gradients of each group one contribution, to be clipped as one: the sum of its clipped gradients.

    Nothing but that last clip bounds what a group adds. The first one, of each example, keeps an example from deciding
    the direction alone, and holds the last bits of gradients, which depend on the batch, to a share of the clip norm.
    Of a group of one it is the gradient as it is. A gradient that is not finite counts as zero among others.

    Args:
        grads: [b, *p] one gradient per example; b may be 0.
        groups: [b] number of each one's group.
        clip_norm: radius of the ball, in gradient units; greater than 0.

    Returns:
        [g, *p] in the order of the groups' numbers.

    >>> group_contributions(torch.tensor([[3.0], [0.5], [9.0]]), torch.tensor([0, 0, 1]), clip_norm=1.0)
    tensor([[1.5000],
            [9.0000]])
    """
    numbers, place, counts = groups.unique(return_inverse=True, return_counts=True)
    factors = clip_factors(grads, clip_norm).reshape(-1, *[1] * (grads.ndim - 1))
    clipped = factors * grads.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    is_alone = (counts[place] == 1).reshape(factors.shape)
    rows = torch.where(is_alone, grads, clipped)
    return grads.new_zeros(len(numbers), *grads.shape[1:]).index_add_(0, place, rows)


def group_shares(groups: Int64[Tensor, " b"]) -> Float64[Tensor, " b"]:
    """Return [b] one over the number of rows of each row's group: with them, a group's rows weigh as one.

    >>> group_shares(torch.tensor([0, 0, 1])).tolist()
    [0.5, 0.5, 1.0]
    """
    _, place, counts = groups.unique(return_inverse=True, return_counts=True)
    return 1 / counts[place].double()


def clip_factors(grads: Float[Tensor, "b *p"], clip_norm: float) -> Float[Tensor, " b"]:
    """Return [b] the factor in [0, 1] that puts each gradient into the ball; 0 for a gradient that is not finite.

    The factors and the norms behind them are not private: never log them.
    """
    norms = grads.flatten(1).norm(dim=1)
    usable = norms.isfinite()
    # Rounding must not carry a clipped gradient out of the ball: aim one part in a million inside it.
    factors = (clip_norm * (1 - 1e-6) / norms).clamp(max=1.0)  # x / 0 is inf, clamped to 1
    return torch.where(usable, factors, torch.zeros_like(factors))


def add_up(sums: list[ClippedSum]) -> ClippedSum:
    """Add clipped sums of disjoint sets of contributions; the sensitivity stays that of one contribution.

    Raises:
        PrivacyError: nothing to add, or the sums were clipped to different norms.
    """
    if not sums:
        raise PrivacyError("There is no clipped sum to add up: no client took part in this step.")
    sensitivities = {part.sensitivity for part in sums}
    if len(sensitivities) > 1:
        raise PrivacyError(
            f"Clipped sums with different sensitivities cannot be added: {sorted(sensitivities)}. "
            "Use one clip norm for all clients."
        )
    return ClippedSum(
        torch.stack([part.value for part in sums]).sum(dim=0),
        sums[0].sensitivity,
        sum(part.centered_count for part in sums),
    )
