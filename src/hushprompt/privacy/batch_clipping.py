"""Clipping of a batch's mean gradient, as some published code does it, and what that bounds. For comparison only.

**What is proven.** Take the mean gradient of a batch in k blocks that are clipped apart to norm C. Each clipped block
lies in the ball of radius C, so for any two batches a block differs by at most 2 C, and all blocks together by at most
`2 C sqrt(k)`. Nothing smaller holds: a gradient has no bound of its own, so one example x with a large enough gradient
turns the mean of b others, (sum + g_x) / (b + 1), into any direction, and moves a clipped block from one side of the
ball to the other. That is so whether x is added, removed, or put in the place of another example: under replace-one
the two means lie in the same ball, and the sensitivity does not double.

**What is not proven** is the sensitivity C / b by which such code sets its noise. It would hold if each example's
gradient had been clipped to C before the mean was taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hushprompt import checks
from hushprompt.privacy.clipping import ClippedSum


@dataclass(frozen=True, kw_only=True)
class BatchClipping:
    """What a plan must know of a method that clips batches."""

    num_local_blocks: int
    """Blocks k that a client's local release is clipped in."""
    calibration: Literal["paper", "accountant"]
    """Noise by the formula of the paper, with the epsilon that it is called by, or by what can be proven."""


def batch_sensitivity(clip_norm: float, num_blocks: int) -> float:
    """Return the worst-case L2 sensitivity 2 C sqrt(k); see the module docstring."""
    return 2 * clip_norm * math.sqrt(num_blocks)


def clipped_means(means: Sequence[Float[Tensor, "..."]], clip_norm: float) -> ClippedSum:
    """Clip each block of a batch's mean gradient to an L2 ball, and put the blocks in one row.

    Guarantee: L2 sensitivity 2 C sqrt(k), for an example added, removed or replaced. A block with a NaN or infinite
    entry becomes zero.

    >>> clipped_means([torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])], clip_norm=1.0).value
    tensor([0.6000, 0.8000, 0.3000, 0.4000])
    """
    checks.positive(clip_norm=clip_norm)
    checks.finite(clip_norm=clip_norm)
    blocks = []
    for mean in means:
        norm = mean.norm()
        scale = (clip_norm * (1 - 1e-6) / norm).clamp(max=1.0)  # x / 0 is inf, clamped to 1
        blocks.append(torch.where(norm.isfinite(), mean * scale, torch.zeros_like(mean)).flatten())
    return ClippedSum(torch.cat(blocks), batch_sensitivity(clip_norm, len(blocks)))


def published_noise_multiplier(*, nominal_epsilon: float, delta: float, num_rounds: int) -> float:
    """Return the noise std over assumed sensitivity that the paper's formula sets: sqrt(T ln(1 / delta)) / epsilon.

    Source: Tran et al. 2025 (arXiv:2501.13904) and its released code, with T rounds and no sampling.

    >>> round(published_noise_multiplier(nominal_epsilon=0.4, delta=1e-5, num_rounds=100), 1)
    84.8
    """
    checks.positive(nominal_epsilon=nominal_epsilon)
    return math.sqrt(num_rounds * math.log(1 / delta)) / nominal_epsilon
