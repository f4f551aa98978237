"""What every release of a run is: what is clipped to which norm, and how much noise goes on the sum.

It says what happens, and nothing about what that proves: `plan.py` does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hushprompt.privacy.adaptive import ClipNorms, first_norms, sum_multiplier
from hushprompt.privacy.batch_clipping import BatchClipping, batch_sensitivity
from hushprompt.privacy.config import Channel, PrivacyConfig
from hushprompt.system_random import SystemDraws


@dataclass(frozen=True, kw_only=True)
class ReleasePlan:
    """Clip norms and noise of one training run."""

    channels: frozenset[Channel]
    """The releases that the method makes; empty where it learns nothing from data."""
    clip_norms: dict[Channel, float]
    noise_multipliers: dict[Channel, float]
    """Noise std over sensitivity, which is the clip norm; 0 is no noise. Only for the channels that are used. Where
    clip norms are adaptive: of the sum and its count together."""
    config: PrivacyConfig
    batch_clipping: BatchClipping | None = None
    """Set where the mean gradient of a batch is clipped instead of each example's."""

    def sensitivity(self, channel: Channel) -> float:
        """Return what one unit can move a channel's first sum by: the clip norm, unless batches are clipped."""
        return channel_sensitivity(self.clip_norms[channel], channel, self.batch_clipping)

    def sum_multiplier(self, channel: Channel) -> float:
        """Return the noise std over clip norm of a channel's sum alone."""
        z = self.noise_multipliers[channel]
        return z if self.config.adaptive_quantile is None else sum_multiplier(z, self.config.adaptive_share)

    @property
    def clipped_as_one(self) -> frozenset[Channel]:
        """Channels on which a client's whole contribution to a step is clipped as one."""
        if self.batch_clipping is not None:
            return self.channels
        return frozenset() if self.config.privacy_unit == "example" else frozenset({Channel.GLOBAL})

    def first_norms(self, num_clients: int) -> ClipNorms | None:
        """Return the clip norms of the first step, 1 for a channel that is not used; None where norms are fixed."""
        if self.config.adaptive_quantile is None:
            return None
        return first_norms(
            self.clip_norms.get(Channel.GLOBAL, 1.0), self.clip_norms.get(Channel.LOCAL, 1.0), num_clients
        )

    @property
    def is_replay_exact(self) -> bool:
        """True where a round that runs again gives the same releases bit for bit, and so need not be charged again."""
        return self.config.noise_source == "seeded"

    def private_stream(self, seeded: np.random.Generator) -> np.random.Generator:
        """Return the stream for draws that must stay secret, such as who is in a batch: amplification rests on that.

        With secure noise they come from the operating system, whatever the seed, and are never shown.
        """
        return seeded if self.config.noise_source == "seeded" else SystemDraws()


def channel_sensitivity(clip_norm: float, channel: Channel, clipping: BatchClipping | None) -> float:
    """Return the L2 sensitivity of a channel's sum."""
    if clipping is None:
        return clip_norm
    return batch_sensitivity(clip_norm, clipping.num_local_blocks if channel is Channel.LOCAL else 1)
