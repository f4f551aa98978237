"""What every release of a run is: what is clipped to which norm, and how much noise goes on the sum.

It says what happens, and nothing about what that proves: `plan.py` does.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from hushprompt.errors import PrivacyError
from hushprompt.privacy.adaptive import (
    COUNT_SENSITIVITY,
    COUNT_SLOPE,
    ClipNorms,
    count_std,
    first_norms,
    sum_multiplier,
)
from hushprompt.privacy.config import Channel, PrivacyConfig
from hushprompt.privacy.shares import ShareGrid, ShareTerms
from hushprompt.privacy.system_random import ByteSource, SystemDraws


@dataclass(frozen=True, kw_only=True)
class BatchClipping:
    """What a plan must know of a method that clips batches; see `mechanisms/batch_clipping.py`."""

    num_local_blocks: int
    """Blocks k that a client's local release is clipped in."""
    calibration: Literal["paper", "accountant"]
    """Noise by the formula of the paper, with the epsilon that it is called by, or by what can be proven."""


def batch_sensitivity(clip_norm: float, num_blocks: int) -> float:
    """Return the worst-case L2 sensitivity 2 C sqrt(k) of k clipped blocks; see `mechanisms/batch_clipping.py`."""
    return 2 * clip_norm * math.sqrt(num_blocks)


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
    mechanism: str = "gaussian"
    """Name in MECHANISMS of what clips and releases."""
    parts: tuple[float, ...] = ()
    """Shares of the one release that the steps of a round make, which sum to at most 1; empty where each step makes a
    release of its own. A step of share b clips to C sqrt(b) and gets the whole noise z C: multipliers z / sqrt(b),
    which together are one Gaussian mechanism of multiplier z, also where later parts depend on earlier ones."""
    num_rounded: int = 0
    """Rows of a sum that rounding may move when one unit joins or leaves: examples of the largest client, or its groups
    times the most examples that a step takes of one. 0 where each contribution is computed apart from all others."""
    cohort_size: int = 0
    """Clients of a round; looked at where clients add shares of the noise."""
    read: ByteSource = field(default=os.urandom, repr=False, compare=False)
    """Source of the bytes that secure noise and private batches are made of; see `system_random.py`."""

    @property
    def has_shares(self) -> bool:
        """Whether clients add shares of the noise on the global sum, of which the server learns nothing else."""
        return self.config.noise_at == "shares" and Channel.GLOBAL in self.channels

    def terms(self) -> ShareTerms:
        """Return who may be gone from a cohort, and who may be with the server, where clients add shares of the noise.

        Raises:
            PrivacyError: they do not, or the cohort is too small.
        """
        if not self.has_shares:
            raise PrivacyError(f'No noise is shared: privacy.noise_at is "{self.config.noise_at}".')
        return ShareTerms(
            num_clients=self.cohort_size,
            max_dropouts=self.config.max_dropouts,
            max_colluding=self.config.max_colluding,
            rescue=self.config.rescue,
        )

    def share_grid(self, clip_norm: float, step: int, size: int, num_participants: int) -> ShareGrid:
        """Return the grid of a step's sum over clients that add shares of the noise.

        Args:
            clip_norm: of the step.
            step: of the round.
            size: entries of the sum.
            num_participants: who was asked to take part in the step.
        """
        std = self.sum_multiplier(Channel.GLOBAL) * self.sensitivity(Channel.GLOBAL, clip_norm)
        sensitivity = self.exact_sensitivity(Channel.GLOBAL, clip_norm, step) * (1 + self.rounding_margin)
        return ShareGrid.of(std, sensitivity, size, self.terms().honest_among(num_participants))

    def count_grid(self, num_participants: int) -> ShareGrid:
        """Return the grid of the count that adaptive clip norms follow, where clients add shares of the noise."""
        larger = 1 + COUNT_SLOPE * self.rounding_margin
        honest = self.terms().honest_among(num_participants)
        return ShareGrid.of(self.count_std(Channel.GLOBAL), COUNT_SENSITIVITY * larger, 1, honest)

    def count_std(self, channel: Channel) -> float:
        """Return the noise std of the count that adaptive clip norms follow."""
        larger = 1 + COUNT_SLOPE * self.rounding_margin
        return count_std(self.noise_multipliers[channel], self.config.adaptive_share) * larger

    @property
    def noise_source(self) -> Literal["seeded", "secure"]:
        """Where noise and private batches come from; what nobody resolved is secure."""
        return "seeded" if self.config.noise_source == "seeded" else "secure"

    @property
    def rounding_margin(self) -> float:
        """What rounding of all other rows can add to a sum's sensitivity, over the clip norm: n rho.

        A tower computes a batch together, so the last bits of a gradient depend on how many others are in it. Clipping
        moves no two points apart, so where each of n gradients moves by at most rho C, the sum moves by n rho C.
        """
        return self.num_rounded * self.config.rounding

    def sensitivity(self, channel: Channel, clip_norm: float | None = None) -> float:
        """Return the L2 sensitivity that a channel's noise is for, rounding included: C (1 + n rho).

        Args:
            channel: of the sum.
            clip_norm: of the step; None for that of the first.
        """
        whole = dataclasses.replace(self, parts=()).exact_sensitivity(channel, clip_norm)
        return whole * (1 + self.rounding_margin)

    def exact_sensitivity(self, channel: Channel, clip_norm: float | None = None, step: int = 0) -> float:
        """Return the L2 sensitivity of a step's sum without rounding: C, C sqrt(b), or 2 C sqrt(k) of clipped batches.

        Args:
            channel: of the sum.
            clip_norm: of the step; None for that of the first.
            step: of the round, where steps make parts of one release.
        """
        norm = self.clip_norms[channel] if clip_norm is None else clip_norm
        if self.parts:
            return norm * math.sqrt(self.parts[step])
        if self.batch_clipping is None:
            return norm
        return batch_sensitivity(norm, self.batch_clipping.num_local_blocks if channel is Channel.LOCAL else 1)

    def sum_multiplier(self, channel: Channel) -> float:
        """Return the noise std over clip norm of a channel's sum alone."""
        z = self.noise_multipliers[channel]
        return z if self.config.adaptive_quantile is None else sum_multiplier(z, self.config.adaptive_share)

    @property
    def clipped_as_one(self) -> frozenset[Channel]:
        """Channels on which a client's whole contribution to a step is clipped as one."""
        if self.batch_clipping is not None:
            return self.channels
        return frozenset({Channel.GLOBAL}) if self.config.privacy_unit == "client" else frozenset()

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
        return self.noise_source == "seeded"

    def private_stream(self, seeded: np.random.Generator) -> np.random.Generator:
        """Return the stream for draws that must stay secret, such as who is in a batch: amplification rests on that.

        With secure noise they come from the plan's source of bytes, whatever the seed, and are never shown.
        """
        return seeded if self.noise_source == "seeded" else SystemDraws(self.read)
