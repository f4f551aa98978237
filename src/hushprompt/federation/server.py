"""The server's side of a round: what arrived, who was asked, and public sizes make the next shared state."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from hushprompt.config.schema import TrainingConfig
from hushprompt.federation import payload
from hushprompt.federation.client import Step
from hushprompt.federation.payload import PayloadKind
from hushprompt.methods.base import Shared
from hushprompt.privacy.adaptive import ClipNorms
from hushprompt.privacy.config import Channel
from hushprompt.privacy.mechanisms.base import Mechanism, Release
from hushprompt.runs.arm import Arm
from hushprompt.seeding import stream


@dataclass(frozen=True)
class Server:
    """The server, with what it knows of every client: its public number of training examples."""

    seed: int
    training: TrainingConfig
    sizes: Sequence[int]

    def aggregate(
        self,
        arm: Arm,
        shared: Shared,
        norms: ClipNorms | None,
        messages: Mapping[int, Any],
        cohort: Sequence[int],
        step: Step,
    ) -> tuple[Shared, ClipNorms | None]:
        """Return what is shared, moved by what arrived; every divisor is that of the whole cohort, whoever showed up.

        Args:
            arm: method and privacy plan.
            shared: what the clients began with.
            norms: clip norms of this step, where they are adaptive.
            messages: by client, of those who showed up, at least one; in the order of the clients.
            cohort: who was asked.
            step: the first of the local steps that the messages come from.
        """
        kind = payload.payload_kind(self.training.local_steps, arm.plan.config.noise_at)
        arrived = list(messages.values())
        if kind is PayloadKind.SHARES:
            return self.open_shares(arm, shared, norms, payload.add_shares(arrived), len(arrived), cohort, step)
        if kind is PayloadKind.SUMS:
            summed = payload.unpack_sum(arrived)
            assert summed is not None, "there is a message"
            released = self._mechanism(arm, norms, cohort, step).release(Channel.GLOBAL, summed)
            return _moved(arm, shared, norms, released)
        total = sum(map(self._weight, cohort))
        weights = [self._weight(client_id) / total for client_id in messages]
        if kind is PayloadKind.GRADIENTS:
            return arm.method.server_step(shared, payload.average_gradients(arrived, weights)), norms
        return payload.average(arrived, weights, shared), norms

    def open_shares(
        self,
        arm: Arm,
        shared: Shared,
        norms: ClipNorms | None,
        total: Int64[np.ndarray, " l"],
        num_participants: int,
        cohort: Sequence[int],
        step: Step,
    ) -> tuple[Shared, ClipNorms | None]:
        """Return what is shared, moved by the sum of all clients' shares; the noise is in it.

        Args:
            arm: method and privacy plan.
            shared: what the clients began with.
            norms: clip norms of this step, where they are adaptive.
            total: [L] the sum, modulo 2^64, without masks.
            num_participants: clients that were asked to take part; as many as the sum is over, without rescue.
            cohort: of the round, whose size is the divisor.
            step: of the sum.

        Raises:
            ProtocolError: the sum is out of range: masks did not cancel.
        """
        released = self._mechanism(arm, norms, cohort, step).open_shares(Channel.GLOBAL, total, num_participants)
        like = payload.shared_like(arm.method, shared)
        value = released.value.reshape(like.shape).to(like.device)
        return _moved(arm, shared, norms, dataclasses.replace(released, value=value))

    def _mechanism(self, arm: Arm, norms: ClipNorms | None, cohort: Sequence[int], step: Step) -> Mechanism:
        """Return the server's tool for one release."""
        return arm.plan.mechanism(
            allowed=Channel.GLOBAL,
            expected_count=sum(arm.plan.sampler.expected_batch_size(self.sizes[client_id]) for client_id in cohort),
            rng=stream(self.seed, "noise", "global", arm.label, *step),
            num_clients=len(cohort),
            clip_norms=None if norms is None else norms.of(cohort[0]),
            step=step.step_index,
        )

    def add_late(
        self, arm: Arm, shared: Shared, message: Any, client_id: int, classes: tuple[int, ...] | None
    ) -> Shared:
        """Return what is shared with the last part of one client's release, made after that of all others.

        Args:
            arm: with a method that takes late clients, and a plan that knows this one.
            shared: as it was released.
            message: of the client: its clipped sums, or with its own noise their mean over its examples.
            client_id: who it is; the noise on its sum has a stream of its own.
            classes: that it is declared to have; None: not declared.
        """
        size, step = self.sizes[client_id], len(arm.method.parts) - 1  # type: ignore[attr-defined]
        if payload.payload_kind(self.training.local_steps, arm.plan.config.noise_at) is PayloadKind.SUMS:
            noise = stream(self.seed, "noise", "global", arm.label, "late", client_id)
            mechanism = arm.plan.mechanism(allowed=Channel.GLOBAL, expected_count=float(size), rng=noise, step=step)
            message = mechanism.release(Channel.GLOBAL, message).value
        return arm.method.with_late(shared, message, size, classes)  # type: ignore[attr-defined]

    def _weight(self, client_id: int) -> float:
        """Return a client's public weight, before all are made to sum to 1."""
        return 1.0 if self.training.weighting == "equal" else float(self.sizes[client_id])


def _moved(arm: Arm, shared: Shared, norms: ClipNorms | None, released: Release) -> tuple[Shared, ClipNorms | None]:
    """Return what is shared, stepped with a release, and the clip norms of the next step."""
    stepped = arm.method.server_step(shared, released.value)
    return stepped, norms if norms is None else norms.with_shared(released.next_norms[Channel.GLOBAL])
