"""The Gaussian mechanism: a sum of clipped contributions plus N(0, (z C)^2) in every entry.

Source: Abadi et al. 2016 (arXiv:1607.00133), Algorithm 1; with adaptive clip norms, Andrew et al. 2021 (`adaptive.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from hushprompt.privacy.adaptive import COUNT_SENSITIVITY, COUNT_SLOPE
from hushprompt.privacy.clipping import ClippedSum, as_one_contribution, clipped_sum
from hushprompt.privacy.config import Channel
from hushprompt.privacy.mechanisms.base import Release, StepMechanism
from hushprompt.privacy.noise import add_gaussian, add_secure_gaussian
from hushprompt.registry import MECHANISMS

if TYPE_CHECKING:
    import dp_accounting


@MECHANISMS.register("gaussian")
@dataclass(frozen=True, kw_only=True)
class GaussianMechanism(StepMechanism):
    """Clip each example, or a whole client's contribution, and add Gaussian noise to the sum."""

    def event(self) -> dp_accounting.DpEvent:
        """Return one Gaussian event; where clip norms are adaptive, of the sum and its count together."""
        import dp_accounting

        return dp_accounting.GaussianDpEvent(self.plan.noise_multipliers[self.allowed])

    def clip(self, channel: Channel, grads: Float[Tensor, "b *p"]) -> ClippedSum:
        """Clip per-example gradients [b, *p] to the channel's norm and add them up.

        Where the unit is a client, the mean of the rows is the one contribution that is clipped on the GLOBAL channel;
        an empty batch contributes zero.

        Raises:
            PrivacyError: the plan does not account for a release on `channel`.
        """
        self.check_declared(channel)
        rows = as_one_contribution(grads) if channel in self.plan.clipped_as_one else grads
        if self.plan.noise_source == "secure":  # rounding of the sum must be small against clipping's margin
            rows = rows.double()
        return clipped_sum(rows, self.clip_norms[channel])

    def release(self, channel: Channel, summed: ClippedSum) -> Release:
        """Return (sum + N(0, (z C (1 + n rho))^2)) / expected count, and the next clip norm where norms are adaptive.

        Guarantee: one Gaussian mechanism with the plan's noise multiplier z, whatever the batch was; n rho is the
        plan's margin for rounding.

        Raises:
            PrivacyError: this party may not release on `channel`, the sum was clipped to another norm, or this is the
                second release of the step.
        """
        self.begin_release(channel, summed)
        sensitivity = self.plan.sensitivity(channel, self.clip_norms[channel])
        noisy = self._noisy(summed.value, self.plan.sum_multiplier(channel) * sensitivity, sensitivity)
        is_adaptive = self.plan.config.adaptive_quantile is not None
        next_norms = {channel: self.next_norm(channel, self._noisy_count(channel, summed))} if is_adaptive else {}
        value = noisy / self.expected_count
        return Release(value.float() if self.plan.noise_source == "secure" else value, next_norms)

    def _noisy_count(self, channel: Channel, summed: ClippedSum) -> float:
        """Release how many contributions were not clipped."""
        larger = 1 + COUNT_SLOPE * self.plan.rounding_margin
        count = torch.tensor([summed.centered_count], dtype=torch.float64)
        return float(self._noisy(count, self.plan.count_std(channel), COUNT_SENSITIVITY * larger))

    def _noisy(self, value: Tensor, std: float, sensitivity: float) -> Tensor:
        """Add noise from the source that the config names."""
        if self.plan.noise_source == "secure":
            return add_secure_gaussian(value, std, sensitivity, self.plan.read)
        return add_gaussian(value, std, self.rng)
