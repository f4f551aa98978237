"""The training loop: select, update, release, aggregate, evaluate, record, in one function.

Only clients that take part are touched; the others' states stay the objects that they were, so a round costs what its
cohort costs, however many clients there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from hushprompt.config.schema import RunConfig
from hushprompt.evaluation.answers import ANSWER_SHARES
from hushprompt.evaluation.evaluate import Scores
from hushprompt.federation import payload
from hushprompt.federation.client import Client, ClientUpdate, Step
from hushprompt.federation.server import Server
from hushprompt.federation.setup import Federation, client_sizes
from hushprompt.methods.base import Personal, Shared
from hushprompt.privacy.adaptive import ClipNorms
from hushprompt.privacy.schedule import survivors
from hushprompt.runs.arm import Arm
from hushprompt.runs.records import RoundRecord
from hushprompt.runs.state import State
from hushprompt.seeding import stream


@dataclass(frozen=True)
class RoundInfo:
    """What a round's record needs beside the scores."""

    num_done: int
    """Rounds done, this one included."""
    loss: float
    """Mean over clients and steps; NaN if no batch had an example. Not private."""
    bytes_up: int
    bytes_down: int
    clients: tuple[int, ...]
    """Who took part and did not fail; nobody else's personal state has changed."""

    def record(self, arm: Arm, scores: Scores | None, seconds: float, epsilon: dict[str, float]) -> RoundRecord:
        """Return the round's record.

        Args:
            arm: whose round it is.
            scores: after the round; None where it is not evaluated.
            seconds: that it took.
            epsilon: of each audience so far.
        """
        return RoundRecord(
            arm=arm.label,
            round_index=self.num_done,
            seconds=seconds,
            loss=self.loss,
            local=scores.local if scores else math.nan,
            neighbor=scores.neighbor if scores else math.nan,
            harmonic_mean=scores.harmonic_mean if scores else math.nan,
            worst_client=scores.worst_client if scores else math.nan,
            **{name: getattr(scores, name, None) for name in ANSWER_SHARES},
            bytes_up=self.bytes_up,
            bytes_down=self.bytes_down,
            epsilon=epsilon,
            cohort_size=arm.cohorts.cohort_size,
            num_clients=len(self.clients),
            delta=arm.plan.config.delta,
            noise_source=arm.plan.release_plan.noise_source,
        )


@runtime_checkable
class Bookkeeper(Protocol):
    """Who accounts for a training and writes down what came of it."""

    def charge(self, arm: Arm, round_index: int) -> str | None:
        """Charge a round to the privacy ledger before it runs; or say why the budget forbids it."""

    def score(self, arm: Arm, state: State, info: RoundInfo) -> Scores | None:
        """Evaluate the prompts after a round, if that is due."""

    def record(self, arm: Arm, state: State, info: RoundInfo, scores: Scores | None) -> None:
        """Write down a round that is done."""


def train(
    arm: Arm, state: State, ends: Participants, books: Bookkeeper, first_round: int = 0
) -> tuple[State, str | None]:
    """Train an arm to its last round, or until its budget is spent; then also say why it ended."""
    local_steps = ends.training.local_steps
    for round_index in range(first_round, arm.num_rounds):
        # Step 1: select. A public schedule names the cohort. All of it is charged before anything happens, also those
        # who then fail.
        cohort = arm.cohorts[round_index].tolist()
        stopped = books.charge(arm, round_index)
        if stopped is not None:
            return state, stopped
        present = ends.present(arm, round_index)
        batches = {client_id: ends.clients[client_id].batches(arm, round_index) for client_id in present}
        shared, norms = arm.method.begin_round(state.shared), state.norms
        personal = {client_id: state.personal[client_id] for client_id in present}
        losses, sent = [], []
        for first in range(0, arm.plan.sampler.steps_per_round, local_steps):
            step = Step(round_index, first)
            chosen = {client_id: own[first : first + local_steps] for client_id, own in batches.items()}
            # Step 2: update. Every client takes its local steps, from what is shared and from what is its own.
            updates = ends.update(arm, shared, norms, personal, chosen, step)
            personal = {client_id: update.personal for client_id, update in updates.items()}
            # Step 3: release. Clipped sums leave for a server that adds the noise; else the noise is in them already.
            messages = {client_id: each.message for client_id, each in updates.items() if each.message is not None}
            # Step 4: aggregate. The server moves what is shared; every divisor is public.
            if messages:
                shared, norms = ends.server.aggregate(arm, shared, norms, messages, cohort, step)
            if norms is not None:
                norms = norms.with_local({client_id: update.norm for client_id, update in updates.items()})
            losses += [_mean(step) for step in zip(*(update.losses for update in updates.values()), strict=True)]
            sent.append(list(map(payload.num_bytes, messages.values())))
        everyone = tuple(personal.get(client_id, old) for client_id, old in enumerate(state.personal))
        state = State(shared, everyone, norms)
        each = payload.num_bytes_down(arm.method, shared, payload.payload_kind(local_steps, arm.plan.config.noise_at))
        up, down = sum(map(sum, sent)), sum(each * len(sizes) for sizes in sent)
        info = RoundInfo(round_index + 1, _mean(losses), up, down, tuple(present))
        # Step 5: evaluate. Scores are of evaluation images, and exact or from noisy counts.
        scores = books.score(arm, state, info)
        # Step 6: record. The round is on disk before the next one begins.
        books.record(arm, state, info, scores)
    return state, None


class Participants:
    """The server and all clients of a simulated federation; clients work side by side in a pool of threads."""

    def __init__(self, config: RunConfig, federation: Federation, pool: ThreadPoolExecutor) -> None:
        """Hold what stays the same from round to round."""
        self.seed, self.training, self.pool = config.seed, config.training, pool
        self.server = Server(config.seed, config.training, client_sizes(federation.partition))
        classes = federation.declared
        self.clients = [
            Client(
                client.client_id,
                config.seed,
                config.training,
                federation.model,
                federation.train_features,
                federation.train_labels,
                torch.from_numpy(client.indices["train"]),
                None if classes is None else classes[client.client_id],
                client.groups,
                federation.train_texts,
            )
            for client in federation.partition.clients
        ]

    def present(self, arm: Arm, round_index: int) -> list[int]:
        """Return who of a round's cohort does not fail; nobody where those left are too few for noise shares.

        Such a round moves nothing: the server asks nobody, as a sum of so few would hide nobody.
        """
        rng = stream(self.seed, "dropout", round_index)
        ids: list[int] = survivors(arm.cohorts[round_index], self.training.dropout_rate, rng).tolist()
        plan = arm.plan.release_plan
        return ids if not plan.has_shares or len(ids) >= plan.terms().least else []

    def update(
        self,
        arm: Arm,
        shared: Shared,
        norms: ClipNorms | None,
        personal: Mapping[int, Personal],
        batches: Mapping[int, Sequence[np.ndarray]],
        step: Step,
    ) -> dict[int, ClientUpdate]:
        """Return the updates of all clients that have batches, in the same order; `step` is the first of them."""

        def one(client_id: int) -> Any:
            own = None if norms is None else norms.of(client_id)
            mine = personal[client_id], batches[client_id]
            return self.clients[client_id].update(arm, shared, own, *mine, step, num_participants=len(batches))

        # The clients with the largest batches begin, which evens out the end of the round.
        by_size = sorted(batches, key=lambda client_id: -sum(map(len, batches[client_id])))
        running = {client_id: self.pool.submit(one, client_id) for client_id in by_size}
        return {client_id: running[client_id].result() for client_id in batches}


def _mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are numbers, NaN of nothing; an empty batch has no loss."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan
