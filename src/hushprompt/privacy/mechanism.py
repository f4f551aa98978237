"""The Gaussian mechanism of one step at one party: the two doors through which data enter a prompt.

Methods and aggregation clip and release here and nowhere else; nothing that derives from training data leaves a client
or enters a prompt except through `Mechanism.release`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hushprompt.errors import PrivacyError
from hushprompt.privacy.adaptive import COUNT_SENSITIVITY, count_std, next_norm
from hushprompt.privacy.batch_clipping import clipped_means
from hushprompt.privacy.clipping import ClippedSum, as_one_contribution, clipped_sum
from hushprompt.privacy.config import Channel
from hushprompt.privacy.noise import add_gaussian, add_secure_gaussian
from hushprompt.privacy.release_plan import ReleasePlan, channel_sensitivity


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """Clips for both channels and releases on one: the Gaussian mechanism of one step at one party."""

    plan: ReleasePlan
    allowed: Channel
    """The channel on which this party may release."""
    expected_count: float
    """Public expected number of examples (or number of clients, where they are clipped as one) behind the sum; the
    divisor, whoever showed up."""
    rng: np.random.Generator
    """The noise stream of this step and party."""
    clip_norms: dict[Channel, float] = field(default_factory=dict)
    """Clip norms of this step; left out: the plan's, which are those of the first."""
    next_norms: dict[Channel, float] = field(default_factory=dict)
    """Filled by `release` where clip norms are adaptive: the norm of the next step, a function of what was released."""

    def __post_init__(self) -> None:
        """Take the plan's clip norms where none are given."""
        if not self.clip_norms:
            self.clip_norms.update(self.plan.clip_norms)

    def clip(self, channel: Channel, grads: Float[Tensor, "b *p"]) -> ClippedSum:
        """Clip per-example gradients [b, *p] to the channel's norm and add them up.

        Where the unit is a client, the mean of the rows is the one contribution that is clipped on the GLOBAL channel;
        an empty batch contributes zero.

        Raises:
            PrivacyError: the plan does not account for a release on `channel`, or not for one of single gradients.
        """
        self._check_declared(channel, clips_batches=False)
        rows = as_one_contribution(grads) if channel in self.plan.clipped_as_one else grads
        if self.plan.config.noise_source == "secure":  # rounding of the sum must be small against clipping's margin
            rows = rows.double()
        return clipped_sum(rows, self.clip_norms[channel])

    def clip_batch(self, channel: Channel, *means: Float[Tensor, "..."]) -> ClippedSum:
        """Clip the blocks of a batch's mean gradient, each to the channel's norm; for comparison only.

        Raises:
            PrivacyError: the plan does not account for a release on `channel`, or not for one of clipped batches.
        """
        self._check_declared(channel, clips_batches=True)
        return clipped_means(means, self.plan.clip_norms[channel])

    def _check_declared(self, channel: Channel, *, clips_batches: bool) -> None:
        """Raise PrivacyError unless the plan accounts for such a release."""
        if channel not in self.plan.channels:
            raise PrivacyError(
                f"The method uses the {channel} channel but declares only {sorted(self.plan.channels)}: "
                "its release would not be accounted for. Add the channel to the method's `channels`."
            )
        if clips_batches != (self.plan.batch_clipping is not None):
            declared = "clipped batches" if self.plan.batch_clipping is not None else "clipped examples"
            raise PrivacyError(f"The {channel} release is planned for {declared}, and the method makes another sum.")

    def add_penalty(self, summed: ClippedSum, grad: Float[Tensor, "*p"]) -> ClippedSum:
        """Add the gradient of a penalty on prompts to a clipped sum; the release divides it back to `grad`.

        Guarantee: the sensitivity stays, because a penalty knows an example only through earlier releases, which the
        guarantee of the run counts. The contract suite checks that of every method.

        Raises:
            PrivacyError: the unit is larger than an example: a client's prompts are its own data then.
        """
        if self.plan.config.privacy_unit != "example":
            raise PrivacyError(
                f'privacy.privacy_unit = "{self.plan.config.privacy_unit}" does not cover a penalty on personal '
                'prompts in what is shared: it would leave clients unclipped. Use privacy.privacy_unit = "example".'
            )
        return dataclasses.replace(summed, value=summed.value + self.expected_count * grad)

    def release(self, channel: Channel, summed: ClippedSum) -> Float[Tensor, "*p"]:
        """Add the channel's noise to a clipped sum and divide by the public expected count.

        Guarantee: one Gaussian mechanism with the plan's noise multiplier, whatever the batch was. Where clip norms are
        adaptive it gives the sum and, into `next_norms`, the count.

        Raises:
            PrivacyError: this party may not release on `channel`, or the sum was clipped to another norm.
        """
        if channel is not self.allowed:
            raise PrivacyError(f"This party releases on the {self.allowed} channel only, not on {channel}.")
        planned = channel_sensitivity(self.clip_norms[channel], channel, self.plan.batch_clipping)
        if summed.sensitivity != planned:
            raise PrivacyError(
                f"A sum of sensitivity {summed.sensitivity} came for the {channel} release, "
                f"which is planned for {planned}."
            )
        noisy = self._noisy(summed.value, self.plan.sum_multiplier(channel) * summed.sensitivity, summed.sensitivity)
        if self.plan.config.adaptive_quantile is not None:
            self.next_norms[channel] = self._adapted(channel, summed)
        released = noisy / self.expected_count
        return released.float() if self.plan.config.noise_source == "secure" else released

    def _adapted(self, channel: Channel, summed: ClippedSum) -> float:
        """Release the count of what was not clipped, and give the next clip norm."""
        config = self.plan.config
        std = count_std(self.plan.noise_multipliers[channel], config.adaptive_share)
        count = torch.tensor([summed.centered_count], dtype=torch.float64)
        assert config.adaptive_quantile is not None, "asked for only where clip norms are adaptive"
        return next_norm(
            self.clip_norms[channel],
            float(self._noisy(count, std, COUNT_SENSITIVITY)),
            self.expected_count,
            quantile=config.adaptive_quantile,
            rate=config.adaptive_rate,
        )

    def _noisy(self, value: Tensor, std: float, sensitivity: float) -> Tensor:
        """Add noise from the source that the config names."""
        if self.plan.config.noise_source == "secure":
            return add_secure_gaussian(value, std, sensitivity)
        return add_gaussian(value, std, self.rng)
