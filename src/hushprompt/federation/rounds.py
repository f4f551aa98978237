"""One round: the clients of its cohort take their steps side by side, and the server makes one thing of what arrives.

Only clients that take part are touched; the others' states stay the objects that they were, so a round costs what its
cohort costs, however many clients there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hushprompt.config import RunConfig
from hushprompt.federation import aggregate
from hushprompt.federation.aggregate import Travels
from hushprompt.federation.cohort import survivors
from hushprompt.federation.setup import Federation, Row
from hushprompt.federation.states import State
from hushprompt.methods.base import Batch, Personal, Shared, StepInfo, Upload
from hushprompt.privacy.adaptive import ClipNorms
from hushprompt.privacy.config import Channel
from hushprompt.privacy.plan import Mechanism
from hushprompt.seeding import stream


@dataclass(frozen=True)
class RoundInfo:
    """What a round's record needs beside the scores."""

    loss: float
    """Mean over clients and steps; NaN if no batch had an example. Not private."""
    bytes_up: int
    bytes_down: int
    clients: tuple[int, ...]
    """Who took part and did not fail; nobody else's personal state has changed."""


@dataclass(frozen=True)
class Turn:
    """What is left of a client's turn between two meetings with the server."""

    message: Any
    """What travels: a clipped sum, a private gradient, a copy of what is shared, or nothing."""
    personal: Personal
    losses: tuple[float, ...]
    """One a step. Not private."""
    norm: float | None
    """Clip norm of the client's next local release, where norms are adaptive."""


class RoundRunner:
    """Takes the rounds of any row over one federation."""

    def __init__(self, config: RunConfig, federation: Federation, pool: ThreadPoolExecutor) -> None:
        """Hold what stays the same from round to round."""
        self.seed, self.training, self.federation, self.pool = config.seed, config.training, federation, pool
        self.travels = aggregate.what_travels(config.training.local_steps, config.privacy.noise_at)
        self._train_index = [torch.from_numpy(client.indices["train"]) for client in federation.partition.clients]

    def round(self, row: Row, state: State, round_index: int) -> tuple[State, RoundInfo]:
        """Take the steps of one round."""
        place = (row.label, round_index)
        cohort = row.cohorts[round_index]
        present = survivors(cohort, self.training.dropout_rate, stream(self.seed, "dropout", round_index)).tolist()
        batches = [
            row.plan.sampler.batches(
                len(self._train_index[client_id]),
                row.plan.private_stream(stream(self.seed, "batch", *place, client_id)),
            )
            for client_id in present
        ]
        shared = row.method.begin_round(state.shared)
        personal = [state.personal[client_id] for client_id in present]
        norms = state.norms
        losses, up, down = [], 0, 0
        for first in range(0, row.plan.sampler.steps_per_round, self.training.local_steps):
            chosen = [batch[first : first + self.training.local_steps] for batch in batches]
            turns = self._turns(row, shared, norms, personal, present, chosen, (*place, first))
            messages = [turn.message for turn in turns if turn.message is not None]
            if messages:
                shared, norms = self._server(row, shared, norms, messages, present, cohort.tolist(), (*place, first))
            if norms is not None:
                norms = norms.with_local(dict(zip(present, (turn.norm for turn in turns), strict=True)))
            personal = [turn.personal for turn in turns]
            losses += [_mean(step) for step in zip(*(turn.losses for turn in turns), strict=True)]
            up += sum(map(aggregate.num_bytes, messages))
            down += aggregate.num_bytes(messages[0]) * len(messages) if messages else 0
        everyone = list(state.personal)
        for client_id, own in zip(present, personal, strict=True):
            everyone[client_id] = own
        return State(shared, tuple(everyone), norms), RoundInfo(_mean(losses), up, down, tuple(present))

    def _turns(
        self,
        row: Row,
        shared: Shared,
        norms: ClipNorms | None,
        personal: Sequence[Personal],
        present: Sequence[int],
        chosen: Sequence[Sequence[np.ndarray]],
        place: tuple[str, int, int],
    ) -> list[Turn]:
        """Let every client that is present take its turn, side by side; `place` is that of the turn's first step."""
        running = {}
        for at in sorted(range(len(present)), key=lambda at: -sum(map(len, chosen[at]))):  # evens out the end
            own = (personal[at], present[at], chosen[at])
            running[at] = self.pool.submit(self._turn, row, shared, norms, *own, place)
        return [running[at].result() for at in range(len(present))]

    def _turn(
        self,
        row: Row,
        shared: Shared,
        norms: ClipNorms | None,
        personal: Personal,
        client_id: int,
        batches: Sequence[np.ndarray],
        place: tuple[str, int, int],
    ) -> Turn:
        """Take a client's steps until it meets the server, on its own copy of what is shared."""
        label, round_index, first = place
        message: Any = None
        norm: float | None = None
        losses = []
        for step, batch_index in enumerate(batches, start=first):
            here = (label, round_index, step)
            mechanism = self._mechanism(row, norms, Channel.LOCAL, client_id, here)
            upload, personal, info = self._client_step(row, shared, personal, client_id, batch_index, here, mechanism)
            norm = mechanism.next_norms.get(Channel.LOCAL, norm)
            losses.append(info.loss)
            if self.travels is Travels.SUMS:
                message = aggregate.pack(upload)
                continue
            noise = self._mechanism(row, norms, Channel.GLOBAL, client_id, here)
            message = aggregate.pack_private(upload, noise)
            if self.travels is Travels.COPIES and message is not None:
                message = shared = row.method.server_step(shared, message)
        return Turn(message, personal, tuple(losses), norm)

    def _client_step(
        self,
        row: Row,
        shared: Shared,
        personal: Personal,
        client_id: int,
        batch_index: np.ndarray,
        place: tuple[str, int, int],
        mechanism: Mechanism,
    ) -> tuple[Upload, Personal, StepInfo]:
        """Run one client's step on its own data, with its own noise stream."""
        index = self._train_index[client_id]
        chosen = index[torch.from_numpy(batch_index)]
        # Which view stands for an example is drawn uniformly, for each of the client's examples on its own and whoever
        # is in the batch: given the draws, one example gives one clipped gradient and changes no other example's view,
        # so sensitivity and epsilon are those of one view.
        views = stream(self.seed, "view", *place, client_id)
        features = self.federation.train_features[row.method.feature_kind]
        rows = features.rows(chosen.numpy(), views.integers(features.num_views, size=len(index))[batch_index])
        device = self.federation.model.device
        batch = Batch(rows.to(device), self.federation.train_labels[chosen].to(device))
        rng = stream(self.seed, "method", *place, client_id)
        return row.method.client_step(self.federation.model, shared, personal, batch, mechanism, rng)

    def _server(
        self,
        row: Row,
        shared: Shared,
        norms: ClipNorms | None,
        messages: Sequence[Any],
        present: Sequence[int],
        cohort: Sequence[int],
        place: tuple[str, int, int],
    ) -> tuple[Shared, ClipNorms | None]:
        """Move what is shared by what arrived; every divisor is that of the whole cohort, whoever showed up."""
        if self.travels is Travels.SUMS:
            summed = aggregate.unpack_sum(messages)
            assert summed is not None, "there is a message"
            expected = sum(self._expected_batch_size(row, client_id) for client_id in cohort)
            noise = stream(self.seed, "noise", "global", *place)
            mechanism = row.plan.mechanism(
                allowed=Channel.GLOBAL,
                expected_count=expected,
                rng=noise,
                num_clients=len(cohort),
                clip_norms=None if norms is None else norms.of(cohort[0]),
            )
            shared = row.method.server_step(shared, mechanism.release(Channel.GLOBAL, summed))
            return shared, norms if norms is None else norms.with_shared(mechanism.next_norms[Channel.GLOBAL])
        total = sum(map(self._weight, cohort))
        weights = [self._weight(client_id) / total for client_id in present]
        if self.travels is Travels.GRADIENTS:
            return row.method.server_step(shared, aggregate.average_gradients(messages, weights)), norms
        return aggregate.average(messages, weights, shared), norms

    def _mechanism(
        self, row: Row, norms: ClipNorms | None, channel: Channel, client_id: int, place: tuple[str, int, int]
    ) -> Mechanism:
        """Give a client its tool for one release, with a noise stream of its own."""
        noise = stream(self.seed, "noise", str(channel), *place, client_id)
        count = self._expected_batch_size(row, client_id)
        own = None if norms is None else norms.of(client_id)
        return row.plan.mechanism(allowed=channel, expected_count=count, rng=noise, clip_norms=own)

    def _expected_batch_size(self, row: Row, client_id: int) -> float:
        """Give the public expected size of a client's batch."""
        return row.plan.sampler.expected_batch_size(len(self._train_index[client_id]))

    def _weight(self, client_id: int) -> float:
        """Give a client's public weight, before all are made to sum to 1."""
        return 1.0 if self.training.weighting == "equal" else float(len(self._train_index[client_id]))


def _mean(values: Sequence[float]) -> float:
    """Give the mean of the values that are numbers, NaN of nothing; an empty batch has no loss."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan
