"""What every mechanism offers, and the checks that all of them share.

A mechanism is the tool with which one party makes its release of one step. It clips contributions to a bound, adds
noise of the planned size, and names the event that accounting composes. Methods and aggregation clip and release
through it and nowhere else: nothing that derives from training data leaves a client or enters a prompt except through
three doors: `release`, or, where clients add shares of the noise, `share` at each client and `open_shares` on the sum.

Another mechanism is one file: a frozen dataclass that extends `StepMechanism`, registered in MECHANISMS.
tests/privacy/test_mechanisms.py holds every registered one to its word.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from hushprompt.errors import PrivacyError
from hushprompt.privacy.adaptive import next_norm
from hushprompt.privacy.clipping import ClippedSum, add_up
from hushprompt.privacy.config import Channel
from hushprompt.privacy.noise import share_of_noise
from hushprompt.privacy.release_plan import ReleasePlan
from hushprompt.privacy.shares import ShareGrid

if TYPE_CHECKING:  # who uses a prompt needs no accountant
    import dp_accounting

NUMBERS_AT_ONCE = 2**24
"""Entries of per-example gradients that `clip_outer` holds together: 64 MiB in float32."""


@dataclass(frozen=True)
class Release:
    """What a mechanism released: private, so anything may be done with it."""

    value: Float[Tensor, "*p"]
    """[*p] the noisy sum over the public expected count."""
    next_norms: Mapping[Channel, float] = field(default_factory=dict)
    """Clip norms of the next step where they are adaptive: functions of what was released. Empty where norms are
    fixed."""


@dataclass(frozen=True)
class ClassRows:
    """One row an example, each a function of that example alone, public constants and earlier releases."""

    values: Float[Tensor, "n r"]
    """In units of the bound that they are clipped to."""
    labels: Int[Tensor, " n"]
    """Class of each row, from 0 to c - 1."""
    is_public: Bool[Tensor, " c"]
    """Classes of which it is public that the client may have examples: only they have rows that are released. Whatever
    is not declared is True."""
    squares: bool = False
    """Add up the outer products of rows instead, into the r rows that `is_public` names: a Gram matrix."""


@runtime_checkable
class Mechanism(Protocol):
    """The mechanism of one step at one party, as methods and aggregation see it."""

    @property
    def plan(self) -> ReleasePlan:
        """What is clipped to which norm, and how much noise is planned."""

    @property
    def allowed(self) -> Channel:
        """The channel on which this party may release."""

    @property
    def expected_count(self) -> float:
        """Public expected number of contributions behind the sum: the divisor, whoever showed up."""

    @property
    def clip_norms(self) -> Mapping[Channel, float]:
        """Clip norms of this step."""

    @property
    def step(self) -> int:
        """Which step of its round it is for."""

    @property
    def groups(self) -> Int64[Tensor, " b"] | None:
        """Number of the group of each row of the batch, where the unit is a group; None: rows are the unit."""

    def among(self, rows: Tensor) -> Mechanism:
        """Return the mechanism for a part of the batch's rows, named by index or by a mask."""

    def event(self) -> dp_accounting.DpEvent:
        """Return the event of one release, without sampling: what dp_accounting composes."""

    def clip(self, channel: Channel, grads: Float[Tensor, "b *p"]) -> ClippedSum:
        """Clip per-example gradients [b, *p] and add them up."""

    def clip_batch(self, channel: Channel, *means: Float[Tensor, "..."]) -> ClippedSum:
        """Clip the blocks of a batch's mean gradient; for comparison only."""

    def clip_in_classes(self, channel: Channel, rows: ClassRows) -> ClippedSum:
        """Clip one row an example, and add up the rows of each class."""

    def add_penalty(self, summed: ClippedSum, grad: Float[Tensor, "*p"]) -> ClippedSum:
        """Add the gradient of a penalty on prompts to a clipped sum; the release divides it back to `grad`."""

    def release(self, channel: Channel, summed: ClippedSum) -> Release:
        """Add the planned noise to a clipped sum and divide by the public expected count."""

    def share(self, channel: Channel, summed: ClippedSum, num_participants: int) -> Int64[np.ndarray, " l"]:
        """Round a client's clipped sum to a grid and add its share of the noise; it must be masked before it leaves."""

    def open_shares(self, channel: Channel, total: Int64[np.ndarray, " l"], num_participants: int) -> Release:
        """Turn the sum of all clients' shares into a release; the noise is in it."""


@dataclass(frozen=True, kw_only=True)
class StepMechanism:
    """Fields, checks and noise shares that mechanisms have alike. A mechanism adds `event`, clipping and `release`."""

    makes: ClassVar[str] = "clipped examples"
    """What its sums are made of, in a message."""
    plan: ReleasePlan
    allowed: Channel
    """The channel on which this party may release."""
    expected_count: float
    """Public expected number of examples (or number of clients, where they are clipped as one) behind the sum; the
    divisor, whoever showed up."""
    rng: np.random.Generator
    """The noise stream of this step and party."""
    clip_norms: Mapping[Channel, float]
    """Clip norms of this step."""
    step: int = 0
    """In its round: which part of a release it makes, where a release has parts."""
    groups: ClassVar[None] = None
    _released: list[Channel] = field(default_factory=list, init=False, repr=False, compare=False)
    """Empty until the release of this step is made: the plan counts one."""

    def among(self, rows: Tensor) -> StepMechanism:
        """Return itself: each row counts on its own."""
        return self

    def clip(self, channel: Channel, grads: Float[Tensor, "b *p"]) -> ClippedSum:
        """Refuse to clip examples, unless a mechanism does.

        Raises:
            PrivacyError: always.
        """
        raise self._another_sum(channel)

    def clip_batch(self, channel: Channel, *means: Float[Tensor, "..."]) -> ClippedSum:
        """Refuse to clip a batch's mean gradient, unless a mechanism does.

        Raises:
            PrivacyError: always.
        """
        raise self._another_sum(channel)

    def clip_in_classes(self, channel: Channel, rows: ClassRows) -> ClippedSum:
        """Refuse to sum in classes, unless a mechanism does.

        Raises:
            PrivacyError: always.
        """
        raise self._another_sum(channel)

    def _another_sum(self, channel: Channel) -> PrivacyError:
        """Return the refusal of a sum that another mechanism would make."""
        return PrivacyError(f"The {channel} release is planned for {self.makes}, and the method makes another sum.")

    def add_penalty(self, summed: ClippedSum, grad: Float[Tensor, "*p"]) -> ClippedSum:
        """Add the gradient of a penalty on prompts to a clipped sum; the release divides it back to `grad`.

        Guarantee: the sensitivity stays, because a penalty knows an example only through earlier releases, which the
        guarantee of the run counts. The contract suite checks that of every method.

        Raises:
            PrivacyError: the unit is a client: its prompts are its own data then.
        """
        if self.plan.config.privacy_unit == "client":
            raise PrivacyError(
                f'privacy.privacy_unit = "{self.plan.config.privacy_unit}" does not cover a penalty on personal '
                'prompts in what is shared: it would leave clients unclipped. Use privacy.privacy_unit = "example".'
            )
        return dataclasses.replace(summed, value=summed.value + self.expected_count * grad)

    def check_declared(self, channel: Channel) -> None:
        """Raise PrivacyError unless the plan accounts for a release on `channel`."""
        if channel not in self.plan.channels:
            raise PrivacyError(
                f"The method uses the {channel} channel but declares only {sorted(self.plan.channels)}: "
                "its release would not be accounted for. Add the channel to the method's `channels`."
            )

    def begin_release(self, channel: Channel, summed: ClippedSum) -> None:
        """Check the one release of this step; every `release` calls it first.

        Raises:
            PrivacyError: this party may not release on `channel`, the sum is not as sensitive as planned, or the
                release of this step was made before, or it is planned as shares.
        """
        if channel is Channel.GLOBAL and self.plan.has_shares:
            raise PrivacyError(
                'With privacy.noise_at = "shares" no party adds the global noise alone: use `share` at each client.'
            )
        self._check_sum(channel, summed)
        self._begin(channel)

    def share(self, channel: Channel, summed: ClippedSum, num_participants: int) -> Int64[np.ndarray, " l"]:
        """Round this client's clipped sum to the step's grid and add its share of the noise.

        Guarantee: the sum of such vectors, with those of `honest_among(num_participants)` clients that keep their own
        noise to themselves, is one Gaussian mechanism with the plan's noise multiplier. One vector alone is not: it
        must be masked before it leaves, so that nothing but that sum can be learned.

        Args:
            channel: GLOBAL.
            summed: of this client and step.
            num_participants: who was asked to take part in the step, this client included.

        Returns:
            [L] the entries of the sum, in order, and with adaptive clip norms the count of what was not clipped.

        Raises:
            PrivacyError: no shares are planned, so few or many take part, the sum is not as sensitive as planned, or
                this is the second release of the step.
        """
        self._check_shares(channel)
        self._check_sum(channel, summed)
        grids = self._share_grids(summed.value.numel(), num_participants)
        self._begin(channel)
        values = [summed.value.detach().double().cpu().numpy().ravel(), np.array([summed.centered_count])]
        whole = np.concatenate([grid.encode(value) for grid, value in zip(grids, values, strict=False)])
        if self.plan.noise_multipliers[channel] == 0:
            return whole
        return whole + share_of_noise(
            len(whole), self.rng if self.plan.noise_source == "seeded" else None, self.plan.read
        )

    def open_shares(self, channel: Channel, total: Int64[np.ndarray, " l"], num_participants: int) -> Release:
        """Divide what the sum of all clients' shares stands for by the public expected count; no noise is added.

        Args:
            channel: GLOBAL.
            total: [L] the sum of their vectors, modulo 2^64.
            num_participants: who was asked to take part in the step.

        Returns:
            The release, flat, and the next clip norm where norms are adaptive.

        Raises:
            PrivacyError: no shares are planned, or this is the second release of the step.
            ProtocolError: the sum is out of range.
        """
        self._check_shares(channel)
        size = len(total) - self._is_adaptive
        grids = self._share_grids(size, num_participants)
        parts = [
            grid.decode(part, num_participants) for grid, part in zip(grids, (total[:size], total[size:]), strict=False)
        ]
        self._begin(channel)
        norms = {channel: self.next_norm(channel, float(parts[1][0]))} if self._is_adaptive else {}
        return Release(torch.from_numpy(parts[0] / self.expected_count).float(), norms)

    def next_norm(self, channel: Channel, noisy_count: float) -> float:
        """Return the clip norm that follows from a released count of what was not clipped."""
        config = self.plan.config
        assert config.adaptive_quantile is not None, "asked for only where clip norms are adaptive"
        return next_norm(
            self.clip_norms[channel],
            noisy_count,
            self.expected_count,
            quantile=config.adaptive_quantile,
            rate=config.adaptive_rate,
        )

    @property
    def _is_adaptive(self) -> bool:
        """Whether clip norms follow a count."""
        return self.plan.config.adaptive_quantile is not None

    def _share_grids(self, size: int, num_participants: int) -> list[ShareGrid]:
        """Return the grid of a sum's entries and, where clip norms are adaptive, of the count behind them."""
        grid = self.plan.share_grid(self.clip_norms[Channel.GLOBAL], self.step, size, num_participants)
        return [grid, self.plan.count_grid(num_participants)] if self._is_adaptive else [grid]

    def _check_shares(self, channel: Channel) -> None:
        """Refuse a share where the plan has other noise: it is less than all of it."""
        if channel is not Channel.GLOBAL or not self.plan.has_shares:
            raise PrivacyError(
                f'Noise on the {channel} release is not shared: privacy.noise_at is "{self.plan.config.noise_at}". Use '
                "`release`."
            )

    def _check_sum(self, channel: Channel, summed: ClippedSum) -> None:
        """Check that this party may release a sum, and that it is as sensitive as planned."""
        if channel is not self.allowed:
            raise PrivacyError(f"This party releases on the {self.allowed} channel only, not on {channel}.")
        planned = self.plan.exact_sensitivity(channel, self.clip_norms[channel], self.step)
        if summed.sensitivity != planned:
            raise PrivacyError(
                f"A sum of sensitivity {summed.sensitivity} came for the {channel} release, "
                f"which is planned for {planned}."
            )

    def _begin(self, channel: Channel) -> None:
        """Note the one release of this step."""
        if self._released:
            raise PrivacyError(
                f"A second {channel} release came in one step, which is charged for one. Put what is released together "
                "into one row and clip it together, or take a new mechanism for a new step."
            )
        self._released.append(channel)


def clip_outer(
    mechanism: Mechanism, channel: Channel, left: Float[Tensor, "b c"], right: Float[Tensor, "b d"]
) -> ClippedSum:
    """Clip gradients that are outer products of two rows, one an example, and add them up, chunk by chunk.

    Where a client is clipped as one, its mean gradient is the one contribution, made by one product. Rows of one group
    stay in one chunk.
    """
    if channel in mechanism.plan.clipped_as_one:
        mean = left.T @ right / max(len(left), 1)
        return mechanism.clip(channel, mean[None][: len(left)])
    size = max(1, NUMBERS_AT_ONCE // (left.shape[1] * right.shape[1]))
    if mechanism.groups is None:
        chunks = zip(left.split(size), right.split(size), strict=True)
        return add_up([mechanism.clip(channel, torch.einsum("bc,bd->bcd", *chunk)) for chunk in chunks])
    return add_up(
        [
            mechanism.among(rows).clip(channel, torch.einsum("bc,bd->bcd", left[rows], right[rows]))
            for rows in _chunks(size, mechanism.groups)
        ]
    )


def _chunks(size: int, groups: Int64[Tensor, " b"]) -> list[Int64[Tensor, " m"]]:
    """Return the rows of each chunk: about `size` of them, and all or none of a group's."""
    order = groups.cpu().argsort(stable=True)
    ends = torch.cat([groups.cpu()[order].diff().nonzero()[:, 0] + 1, torch.tensor([len(groups)])]).tolist()
    parts, start = [], 0
    for end, following in zip(ends, [*ends[1:], math.inf], strict=True):
        if following - start > size:
            parts.append(order[start:end])
            start = end
    return parts
