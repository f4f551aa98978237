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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import dp_accounting
import torch
from jaxtyping import Float
from torch import Tensor

from hushprompt import checks
from hushprompt.privacy.clipping import ClippedSum
from hushprompt.privacy.config import Channel
from hushprompt.privacy.mechanisms.base import Release, StepMechanism
from hushprompt.privacy.noise import add_gaussian
from hushprompt.privacy.release_plan import batch_sensitivity
from hushprompt.registry import MECHANISMS


@MECHANISMS.register("batch_clipping")
@dataclass(frozen=True, kw_only=True)
class BatchClippingMechanism(StepMechanism):
    """Clip the mean gradient of a batch, block by block, and add Gaussian noise to it; for comparison only."""

    makes: ClassVar[str] = "clipped batches"

    def event(self) -> dp_accounting.DpEvent:
        """Return one Gaussian event, whose multiplier is relative to the sensitivity 2 C sqrt(k)."""
        return dp_accounting.GaussianDpEvent(self.plan.noise_multipliers[self.allowed])

    def clip_batch(self, channel: Channel, *means: Float[Tensor, "..."]) -> ClippedSum:
        """Clip the blocks of a batch's mean gradient, each to the channel's norm.

        Raises:
            PrivacyError: the plan does not account for a release on `channel`.
        """
        self.check_declared(channel)
        return clipped_means(means, self.clip_norms[channel])

    def release(self, channel: Channel, summed: ClippedSum) -> Release:
        """Return (blocks + N(0, (z 2 C sqrt(k))^2)) / number of clients.

        Raises:
            PrivacyError: this party may not release on `channel`, the blocks are not those that are planned, or this is
                the second release of the step.
        """
        self.begin_release(channel, summed)
        std = self.plan.noise_multipliers[channel] * summed.sensitivity
        return Release(add_gaussian(summed.value, std, self.rng) / self.expected_count)


def clipped_means(means: Sequence[Float[Tensor, "..."]], clip_norm: float) -> ClippedSum:
    """Clip each block of a batch's mean gradient to an L2 ball, and put the blocks in one row.

    Guarantee: L2 sensitivity 2 C sqrt(k), for an example added, removed or replaced. A block with a NaN or infinite
    entry becomes zero.

    >>> clipped_means([torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])], clip_norm=1.0).value
    tensor([0.6000, 0.8000, 0.3000, 0.4000])
    """
    checks.clip_norms(clip_norm=clip_norm)
    blocks = []
    for mean in means:
        norm = mean.norm()
        scale = (clip_norm * (1 - 1e-6) / norm).clamp(max=1.0)  # x / 0 is inf, clamped to 1
        blocks.append(torch.where(norm.isfinite(), mean * scale, torch.zeros_like(mean)).flatten())
    return ClippedSum(torch.cat(blocks), batch_sensitivity(clip_norm, len(blocks)))
