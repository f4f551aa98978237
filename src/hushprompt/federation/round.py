"""One round of a simulation: the clients of its cohort take their turns side by side, then they meet the server.

Only clients that take part are touched; the others' states stay the objects that they were, so a round costs what its
cohort costs, however many clients there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from hushprompt.config.schema import RunConfig
from hushprompt.federation import payload
from hushprompt.federation.client import Client, ClientUpdate
from hushprompt.federation.server import Server
from hushprompt.federation.setup import Federation, client_sizes
from hushprompt.methods.base import Personal, Shared
from hushprompt.privacy.adaptive import ClipNorms
from hushprompt.privacy.schedule import survivors
from hushprompt.runs.arm import Arm
from hushprompt.runs.state import State
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


class RoundRunner:
    """Takes the rounds of any arm over one federation."""

    def __init__(self, config: RunConfig, federation: Federation, pool: ThreadPoolExecutor) -> None:
        """Hold what stays the same from round to round."""
        self.seed, self.training, self.pool = config.seed, config.training, pool
        self.travels = payload.payload_kind(config.training.local_steps, config.privacy.noise_at)
        self.meeting = Server(config.seed, config.training, client_sizes(federation.partition))
        self.clients = [
            Client(
                client.client_id,
                config.seed,
                config.training,
                federation.model,
                federation.train_features,
                federation.train_labels,
                torch.from_numpy(client.indices["train"]),
            )
            for client in federation.partition.clients
        ]

    def round(self, arm: Arm, state: State, round_index: int) -> tuple[State, RoundInfo]:
        """Take the steps of one round."""
        cohort = arm.cohorts[round_index]
        present = survivors(cohort, self.training.dropout_rate, stream(self.seed, "dropout", round_index)).tolist()
        batches = [self.clients[client_id].batches(arm, round_index) for client_id in present]
        shared = arm.method.begin_round(state.shared)
        personal = [state.personal[client_id] for client_id in present]
        norms = state.norms
        losses, up, down = [], 0, 0
        for first in range(0, arm.plan.sampler.steps_per_round, self.training.local_steps):
            chosen = [batch[first : first + self.training.local_steps] for batch in batches]
            turns = self._turns(arm, shared, norms, personal, present, chosen, (round_index, first))
            messages = {
                client_id: turn.message
                for client_id, turn in zip(present, turns, strict=True)
                if turn.message is not None
            }
            if messages:
                place = (round_index, first)
                shared, norms = self.meeting.move(arm, shared, norms, messages, cohort.tolist(), place)
            if norms is not None:
                norms = norms.with_local(dict(zip(present, (turn.norm for turn in turns), strict=True)))
            personal = [turn.personal for turn in turns]
            losses += [_mean(step) for step in zip(*(turn.losses for turn in turns), strict=True)]
            sizes = list(map(payload.num_bytes, messages.values()))
            up += sum(sizes)
            down += sizes[0] * len(sizes) if sizes else 0
        everyone = list(state.personal)
        for client_id, own in zip(present, personal, strict=True):
            everyone[client_id] = own
        return State(shared, tuple(everyone), norms), RoundInfo(_mean(losses), up, down, tuple(present))

    def _turns(
        self,
        arm: Arm,
        shared: Shared,
        norms: ClipNorms | None,
        personal: Sequence[Personal],
        present: Sequence[int],
        chosen: Sequence[Sequence[np.ndarray]],
        place: tuple[int, int],
    ) -> list[ClientUpdate]:
        """Let every client that is present take its turn, side by side; `place` is that of the turn's first step."""

        def take(at: int) -> ClientUpdate:
            client = self.clients[present[at]]
            own = None if norms is None else norms.of(client.client_id)
            return client.take(arm, shared, own, personal[at], chosen[at], place)

        # The clients with the largest batches begin, which evens out the end of the round.
        by_size = sorted(range(len(present)), key=lambda at: -sum(map(len, chosen[at])))
        running = {at: self.pool.submit(take, at) for at in by_size}
        return [running[at].result() for at in range(len(present))]


def _mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are numbers, NaN of nothing; an empty batch has no loss."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan
