"""The client's side of a round: all that one client does between two aggregations.

It needs public settings, the frozen model and this client's own examples, and no other client's. The simulator and a
client on a machine of its own call the very same code.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from hushprompt.config.schema import TrainingConfig
from hushprompt.features.store import StoredFeatures
from hushprompt.federation import payload
from hushprompt.federation.payload import PayloadKind
from hushprompt.methods.base import Batch, Personal, Shared, StepInfo, Upload
from hushprompt.models.base import FeatureKind
from hushprompt.privacy.config import Channel
from hushprompt.privacy.mechanisms.base import Mechanism
from hushprompt.prompts.prompted_model import PromptedModel
from hushprompt.prompts.texts import TextTokens
from hushprompt.runs.arm import Arm
from hushprompt.seeding import stream


class Step(NamedTuple):
    """A step of an arm; batches, noise and views of each step have random streams of their own."""

    round_index: int
    """From 0."""
    step_index: int
    """In its round, from 0."""


@dataclass(frozen=True)
class ClientUpdate:
    """What a client's local steps between two aggregations leave."""

    message: Any
    """The payload: a clipped sum, whole numbers with a share of the noise, a private gradient, a copy of what is
    shared, or nothing."""
    personal: Personal
    losses: tuple[float, ...]
    """One a step. Not private."""
    norm: float | None
    """Clip norm of the client's next local release, where norms are adaptive."""


class _Drawn(NamedTuple):
    """The examples of a batch."""

    places: Int64[np.ndarray, " b"]
    """In the client's `index`."""
    units: Int64[np.ndarray, " b"]
    """The example or group that each belongs to, counted over the client."""
    ranks: Int64[np.ndarray, " b"]
    """Place of each in its unit's part of the batch."""
    groups: Int64[Tensor, " b"] | None
    """Number of each one's group, counted over the batch; None where examples are the unit."""


@dataclass(frozen=True)
class Client:
    """One client, with what it needs for its updates."""

    client_id: int
    seed: int
    training: TrainingConfig
    model: PromptedModel
    features: Mapping[FeatureKind, StoredFeatures]
    """Of the kinds that the methods need; perhaps more than this client's, of which `index` are its own."""
    labels: Int[Tensor, " m"]
    index: Int[Tensor, " n"]
    """Rows of this client's training examples."""
    classes: tuple[int, ...] | None = None
    """Classes that it is publicly declared to have; None: not declared."""
    groups: Int64[np.ndarray, " n"] | None = None
    """Number of each example's group, from 0, where groups are the privacy unit; None: examples are."""
    texts: TextTokens | None = None
    """Question and answer of each of the m examples; None in classification."""

    @functools.cached_property
    def members(self) -> list[Int64[np.ndarray, " m"]]:
        """Places in `index` of each group's examples."""
        assert self.groups is not None, "groups are the unit"
        order = np.argsort(self.groups, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(self.groups[order])) + 1)

    @property
    def size(self) -> int:
        """Its public size: examples, or groups where these are the unit."""
        return len(self.index) if self.groups is None else len(self.members)

    def batches(self, arm: Arm, round_index: int) -> list[np.ndarray]:
        """Draw the client's batches of a round: for each step an array of places in `index`, or of groups."""
        rng = stream(self.seed, "batch", arm.label, round_index, self.client_id)
        return arm.plan.sampler.batches(self.size, arm.plan.release_plan.private_stream(rng))

    def update(
        self,
        arm: Arm,
        shared: Shared,
        norms: Mapping[str, float] | None,
        personal: Personal,
        batches: Sequence[np.ndarray],
        first: Step,
        num_participants: int = 0,
    ) -> ClientUpdate:
        """Take the local steps until the next aggregation, on a copy of what is shared.

        Args:
            arm: method and privacy plan.
            shared: what the server holds.
            norms: the client's clip norms by channel name, where they are adaptive.
            personal: what the client holds.
            batches: of these steps.
            first: the first of these steps.
            num_participants: clients that were asked to take part; looked at where they add shares of the noise.
        """
        kind = payload.payload_kind(self.training.local_steps, arm.plan.config.noise_at)
        message: Any = None
        norm: float | None = None
        losses = []
        for index, batch_index in enumerate(batches, start=first.step_index):
            here = (arm.label, first.round_index, index)
            drawn = self._drawn(arm, batch_index, here)
            mechanism = self._mechanism(arm, norms, Channel.LOCAL, here, drawn.groups)
            upload, personal, info = self._step(arm, shared, personal, drawn, here, mechanism)
            norm = info.next_norms.get(Channel.LOCAL, norm)
            losses.append(info.loss)
            if kind is PayloadKind.SUMS:
                message = payload.pack(upload)
                continue
            mechanism = self._mechanism(arm, norms, Channel.GLOBAL, here)
            if kind is PayloadKind.SHARES:
                message = payload.pack_share(upload, mechanism, num_participants)
                continue
            message = payload.pack_private(upload, mechanism)
            if kind is PayloadKind.COPIES and message is not None:
                message = shared = arm.method.server_step(shared, message)
        return ClientUpdate(message, personal, tuple(losses), norm)

    def _step(
        self,
        arm: Arm,
        shared: Shared,
        personal: Personal,
        drawn: _Drawn,
        place: tuple[str, int, int],
        mechanism: Mechanism,
    ) -> tuple[Upload, Personal, StepInfo]:
        """Take one step on the client's own data, with its own noise stream."""
        chosen = self.index[torch.from_numpy(drawn.places)]
        # Which view stands for an example is drawn uniformly, for each of the client's examples on its own and whoever
        # is in the batch: given the draws, one example gives one clipped gradient and changes no other example's view,
        # so sensitivity and epsilon are those of one view. The same holds for a group, whose examples have draws of
        # their own: another number of them moves no other group's draws.
        views = stream(self.seed, "view", *place, self.client_id)
        features = self.features[arm.method.feature_kind]
        draws = views.integers(features.num_views, size=(int(drawn.ranks.max(initial=0)) + 1, self.size))
        rows = features.rows(chosen.numpy(), draws[drawn.ranks, drawn.units])
        device = self.model.device
        texts = None if self.texts is None else self.texts.of(chosen).to(device)
        batch = Batch(rows.to(device), self.labels[chosen].to(device), self.classes, texts)
        rng = stream(self.seed, "method", *place, self.client_id)
        return arm.method.client_step(self.model, shared, personal, batch, mechanism, rng)

    def _drawn(self, arm: Arm, units: np.ndarray, place: tuple[str, int, int]) -> _Drawn:
        """Return the examples of a batch; of a group that is too large a part, which its own stream draws."""
        if self.groups is None:
            return _Drawn(units, units, np.zeros_like(units), None)
        most = None if arm.plan.release_plan.parts else arm.plan.config.max_group_examples
        own = []
        for unit in units.tolist():
            members = self.members[unit]
            if most is not None and len(members) > most:
                rng = stream(self.seed, "group", *place, self.client_id, unit)
                members = members[np.sort(rng.permutation(len(members))[:most])]
            own.append(members)
        sizes = np.array([len(members) for members in own], dtype=np.int64)
        ranks = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        places = np.concatenate(own) if own else units
        numbers = torch.from_numpy(np.repeat(np.arange(len(own)), sizes))
        return _Drawn(places, np.repeat(units, sizes), ranks, numbers)

    def _mechanism(
        self,
        arm: Arm,
        norms: Mapping[str, float] | None,
        channel: Channel,
        place: tuple[str, int, int],
        groups: Int64[Tensor, " b"] | None = None,
    ) -> Mechanism:
        """Return the client its tool for one release, with a noise stream of its own."""
        noise = stream(self.seed, "noise", str(channel), *place, self.client_id)
        count = arm.plan.sampler.expected_batch_size(self.size)
        return arm.plan.mechanism(
            allowed=channel, expected_count=count, rng=noise, clip_norms=norms, step=place[2], groups=groups
        )
