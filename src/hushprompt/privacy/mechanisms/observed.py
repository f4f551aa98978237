"""A mechanism that an audit looks at: the real one releases, and an observer is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import dp_accounting
import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from hushprompt.privacy.clipping import ClippedSum
from hushprompt.privacy.config import Channel
from hushprompt.privacy.mechanisms.base import ClassRows, Mechanism, Release
from hushprompt.privacy.release_plan import ReleasePlan


@runtime_checkable
class ReleaseObserver(Protocol):
    """Whoever is told of releases."""

    def on_release(self, mechanism: Mechanism, channel: Channel, summed: ClippedSum | None, released: Tensor) -> None:
        """Hear of a release of any client, or of the server; `summed` is None where it opened a sum of shares."""

    def on_share(
        self, mechanism: Mechanism, summed: ClippedSum, shared: Int64[np.ndarray, " l"], num_participants: int
    ) -> None:
        """Hear of a client's sum on the grid, with its share of the noise, before masks."""


@dataclass(frozen=True)
class WrappedMechanism:
    """A mechanism that does what another one does."""

    inner: Mechanism

    @property
    def plan(self) -> ReleasePlan:
        """The inner mechanism's."""
        return self.inner.plan

    @property
    def allowed(self) -> Channel:
        """The inner mechanism's."""
        return self.inner.allowed

    @property
    def expected_count(self) -> float:
        """The inner mechanism's."""
        return self.inner.expected_count

    @property
    def clip_norms(self) -> Mapping[Channel, float]:
        """The inner mechanism's."""
        return self.inner.clip_norms

    @property
    def step(self) -> int:
        """The inner mechanism's."""
        return self.inner.step

    @property
    def groups(self) -> Int64[Tensor, " b"] | None:
        """The inner mechanism's."""
        return self.inner.groups

    def among(self, rows: Tensor) -> WrappedMechanism:
        """Return the same around the inner mechanism for a part of the batch's rows."""
        return dataclasses.replace(self, inner=self.inner.among(rows))

    def event(self) -> dp_accounting.DpEvent:
        """Return the inner mechanism's event."""
        return self.inner.event()

    def clip(self, channel: Channel, grads: Float[Tensor, "b *p"]) -> ClippedSum:
        """Clip by the inner mechanism."""
        return self.inner.clip(channel, grads)

    def clip_batch(self, channel: Channel, *means: Float[Tensor, "..."]) -> ClippedSum:
        """Clip by the inner mechanism."""
        return self.inner.clip_batch(channel, *means)

    def clip_in_classes(self, channel: Channel, rows: ClassRows) -> ClippedSum:
        """Clip by the inner mechanism."""
        return self.inner.clip_in_classes(channel, rows)

    def add_penalty(self, summed: ClippedSum, grad: Float[Tensor, "*p"]) -> ClippedSum:
        """Add a penalty by the inner mechanism."""
        return self.inner.add_penalty(summed, grad)

    def release(self, channel: Channel, summed: ClippedSum) -> Release:
        """Release by the inner mechanism."""
        return self.inner.release(channel, summed)

    def share(self, channel: Channel, summed: ClippedSum, num_participants: int) -> Int64[np.ndarray, " l"]:
        """Share by the inner mechanism."""
        return self.inner.share(channel, summed, num_participants)

    def open_shares(self, channel: Channel, total: Int64[np.ndarray, " l"], num_participants: int) -> Release:
        """Open by the inner mechanism."""
        return self.inner.open_shares(channel, total, num_participants)


@dataclass(frozen=True)
class ObservedMechanism(WrappedMechanism):
    """The inner mechanism, whose releases an observer is told of."""

    observer: ReleaseObserver

    def release(self, channel: Channel, summed: ClippedSum) -> Release:
        """Release by the inner mechanism, and tell."""
        released = self.inner.release(channel, summed)
        self.observer.on_release(self.inner, channel, summed, released.value)
        return released

    def share(self, channel: Channel, summed: ClippedSum, num_participants: int) -> Int64[np.ndarray, " l"]:
        """Share by the inner mechanism, and tell."""
        shared = self.inner.share(channel, summed, num_participants)
        self.observer.on_share(self.inner, summed, shared, num_participants)
        return shared

    def open_shares(self, channel: Channel, total: Int64[np.ndarray, " l"], num_participants: int) -> Release:
        """Open by the inner mechanism, and tell."""
        released = self.inner.open_shares(channel, total, num_participants)
        self.observer.on_release(self.inner, channel, None, released.value)
        return released
