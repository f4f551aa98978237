"""The loop for one process: the one place that calls the rooms in order.

Every row of a run (the references, then the method itself) is trained and accounted for on its own, with batches and
noise of its own. Whoever publishes several rows of one run publishes several releases of the same data.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from hushprompt import records
from hushprompt.config import RunConfig
from hushprompt.errors import ResumeError
from hushprompt.evaluation.evaluate import Scores, evaluate
from hushprompt.federation import aggregate, checkpoint
from hushprompt.federation.checkpoint import Progress
from hushprompt.federation.publish import (
    confusion_record,
    partition_record,
    privacy_record,
    provenance,
    write_prompts,
)
from hushprompt.federation.setup import Federation, Row, assemble, client_sizes, cut, load_model, plan_rows
from hushprompt.federation.tracking import tracked
from hushprompt.methods.base import Batch, NoState, Personal, Shared, StepInfo, Upload
from hushprompt.privacy.plan import Audience, Channel
from hushprompt.records import RoundRecord, RowSummary
from hushprompt.seeding import stream


@runtime_checkable
class Observer(Protocol):
    """Who watches a run: the command line draws bars, tests count."""

    def on_setup(self, what: str, done: int, total: int) -> None:
        """Images are being encoded."""

    def on_row(self, row: Row, index: int, num_rows: int, num_rounds_done: int) -> None:
        """A row begins, or goes on after a resume."""

    def on_round(self, record: RoundRecord) -> None:
        """A round is done and on disk."""


@dataclass(frozen=True)
class State:
    """What training moves and a checkpoint stores."""

    shared: Shared
    personal: tuple[Personal, ...]


@dataclass(frozen=True)
class RoundInfo:
    """What a round's record needs beside the scores."""

    loss: float
    """Mean over clients and steps; NaN if no batch had an example. Not private."""
    bytes_up: int
    bytes_down: int


def run(config: RunConfig, folder: Path, observer: Observer) -> list[RowSummary]:
    """Train, evaluate and account for every row; go on where a checkpoint in `folder` stopped.

    Killed at any moment and called again, it leaves the same files, measured seconds aside, as if it had gone through.

    Args:
        config: what to run; the runtime section may differ between calls.
        folder: the run folder, which exists.
        observer: who watches.

    Returns:
        The rows of the result table, the method itself last.

    Raises:
        ConfigError: the config is impossible for this data, or outside the privacy theorem.
        ResumeError: the folder is in use, damaged, or belongs to another config.
    """
    with records.locked(folder), tracked(config, folder, observer) as observer:
        dataset = config.data.load()
        partition = cut(config, dataset)
        rows = plan_rows(config, client_sizes(partition))
        progress = _progress(config, folder)
        records.truncate_records(folder / "records.jsonl", progress.records_size)
        model = load_model(config, dataset, rows)
        federation = assemble(config, model, dataset, partition, observer.on_setup)
        records.write_compact_json(folder / "partition.json", partition_record(dataset, partition))
        # Clients run side by side on one thread each, so results do not depend on the number of cores.
        with ThreadPoolExecutor(_num_workers(config), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            trainer = Trainer(config, federation, folder, pool, observer)
            for index, row in enumerate(rows):
                if index < progress.row_index:
                    continue
                observer.on_row(row, index, len(rows), progress.num_rounds_done)
                state, progress = trainer.train(row, progress)
                progress = trainer.close_row(row, state, progress)
                if index == len(rows) - 1:
                    write_prompts(folder / "prompts", federation.model, row, state.shared, state.personal)
                    records.write_json(folder / "privacy.json", privacy_record(rows))
                    records.write_json(
                        folder / "summary.json", {"rows": progress.finished_rows, "provenance": provenance(config)}
                    )
                checkpoint.save(folder, state, progress)
    return [records.from_json(RowSummary, values) for values in progress.finished_rows]


class Trainer:
    """Trains one row after another over one federation, leaving a checkpoint after every round."""

    def __init__(
        self, config: RunConfig, federation: Federation, folder: Path, pool: ThreadPoolExecutor, observer: Observer
    ) -> None:
        """Hold what stays the same from row to row."""
        self.config = config
        self.federation = federation
        self.folder = folder
        self.pool = pool
        self.observer = observer
        clients = federation.partition.clients
        self._train_index = [torch.from_numpy(client.indices["train"]) for client in clients]

    def train(self, row: Row, progress: Progress) -> tuple[State, Progress]:
        """Train a row from the start, or from the checkpoint in the folder."""
        shared, personal = row.method.init(self.federation.model, stream(self.config.seed, "init"))
        state = State(shared, (personal,) * len(self._train_index))
        if progress.num_rounds_done:
            state = checkpoint.load_state(self.folder, state)
        for round_index in range(progress.num_rounds_done, row.num_rounds):
            start = time.perf_counter()
            epsilons = {who: self.pool.submit(row.plan.epsilon, who, round_index + 1) for who in Audience}
            state, info = self.round(row, state, round_index)
            scores = self.evaluate(row, state)
            seconds = time.perf_counter() - start
            record = RoundRecord(
                row=row.label,
                round_index=round_index + 1,
                seconds=seconds,
                loss=info.loss,
                local=scores.local,
                neighbor=scores.neighbor,
                harmonic_mean=scores.harmonic_mean,
                worst_client=scores.worst_client,
                bytes_up=info.bytes_up,
                bytes_down=info.bytes_down,
                epsilon={str(who): epsilon.result() for who, epsilon in epsilons.items()},
            )
            progress = Progress(
                config_identity=progress.config_identity,
                row_index=progress.row_index,
                num_rounds_done=round_index + 1,
                row_seconds=progress.row_seconds + seconds,
                records_size=records.append_record(self.folder / "records.jsonl", record),
                finished_rows=progress.finished_rows,
            )
            checkpoint.save(self.folder, state, progress)
            self.observer.on_round(record)
        return state, progress

    def round(self, row: Row, state: State, round_index: int) -> tuple[State, RoundInfo]:
        """Take the steps of one round."""
        place = (row.label, round_index)
        batches = [
            row.plan.sampler.batches(len(index), stream(self.config.seed, "batch", *place, client_id))
            for client_id, index in enumerate(self._train_index)
        ]
        infos: list[RoundInfo] = []
        for step, chosen in enumerate(zip(*batches, strict=True)):
            state, info = self._step(row, state, chosen, (*place, step))
            infos.append(info)
        losses = [info.loss for info in infos if not math.isnan(info.loss)]
        return state, RoundInfo(_mean(losses), sum(i.bytes_up for i in infos), sum(i.bytes_down for i in infos))

    def _step(
        self, row: Row, state: State, chosen: tuple[np.ndarray, ...], place: tuple[str, int, int]
    ) -> tuple[State, RoundInfo]:
        """Step every client, side by side, then the server."""

        def client_step(client_id: int) -> tuple[Upload, Personal, StepInfo]:
            return self._client_step(row, state, client_id, chosen[client_id], place)

        largest_first = sorted(range(len(chosen)), key=lambda client_id: -len(chosen[client_id]))  # evens out the end
        running = {client_id: self.pool.submit(client_step, client_id) for client_id in largest_first}
        outcomes = [running[client_id].result() for client_id in range(len(chosen))]
        sent = [aggregate.pack(upload) for upload, _, _ in outcomes]
        summed = aggregate.unpack_sum(sent)
        shared = state.shared
        if summed is not None:
            expected = sum(row.plan.sampler.expected_batch_size(len(index)) for index in self._train_index)
            noise = stream(self.config.seed, "noise", "global", *place)
            mechanism = row.plan.mechanism(allowed=Channel.GLOBAL, expected_count=expected, rng=noise)
            shared = row.method.server_step(shared, mechanism.release(Channel.GLOBAL, summed))
        losses = [info.loss for _, _, info in outcomes if not math.isnan(info.loss)]  # an empty batch has none
        up, down = sum(map(aggregate.num_bytes, sent)), aggregate.num_bytes(summed) * len(sent)
        return State(shared, tuple(personal for _, personal, _ in outcomes)), RoundInfo(_mean(losses), up, down)

    def evaluate(self, row: Row, state: State) -> Scores:
        """Score every client's prompt on all evaluation images."""
        features = self.federation.eval_features

        def logits(personal: Personal) -> torch.Tensor:
            with torch.no_grad():
                return row.method.logits(self.federation.model, state.shared, personal, features)

        if all(isinstance(personal, NoState) for personal in state.personal):
            everyone = [logits(state.personal[0])] * len(state.personal)
        else:
            everyone = list(self.pool.map(logits, state.personal))
        return evaluate(everyone.__getitem__, self.federation.eval_labels, self.federation.splits)

    def close_row(self, row: Row, state: State, progress: Progress) -> Progress:
        """Score the trained row and add its summary to the finished ones."""
        start = time.perf_counter()
        scores = self.evaluate(row, state)
        name = f"row-{progress.row_index:03d}.json"
        records.write_compact_json(self.folder / "confusion" / name, confusion_record(row, scores))
        audience = row.plan.config.audience
        summary = RowSummary(
            row=row.label,
            method=row.method_name,
            title=row.method.title,
            epsilon=row.plan.epsilon(audience) if row.plan.channels else None,
            delta=row.plan.config.delta,
            audience=str(audience),
            local=scores.local,
            neighbor=scores.neighbor,
            harmonic_mean=scores.harmonic_mean,
            worst_client=scores.worst_client,
            calibration_error=scores.calibration_error,
            seconds=progress.row_seconds + time.perf_counter() - start,
            seed=self.config.seed,
            num_rounds=row.num_rounds,
            per_client=[dataclasses.asdict(client) for client in scores.clients],
            per_class=list(scores.per_class),
        )
        return Progress(
            config_identity=progress.config_identity,
            row_index=progress.row_index + 1,
            num_rounds_done=0,
            row_seconds=0.0,
            records_size=progress.records_size,
            finished_rows=[*progress.finished_rows, records.to_json(summary)],
        )

    def _client_step(
        self, row: Row, state: State, client_id: int, batch_index: np.ndarray, place: tuple[str, int, int]
    ) -> tuple[Upload, Personal, StepInfo]:
        """Run one client's step on its own data, with its own noise stream."""
        index = self._train_index[client_id]
        chosen = index[torch.from_numpy(batch_index)]
        # Which view stands for an example is drawn uniformly, for each example on its own and whatever the data: given
        # the draws, one example still gives one clipped gradient, so sensitivity and epsilon are those of one view.
        views = stream(self.config.seed, "view", *place, client_id)
        features = self.federation.train_features
        rows = features.rows(chosen.numpy(), views.integers(features.num_views, size=len(chosen)))
        batch = Batch(rows, self.federation.train_labels[chosen])
        mechanism = row.plan.mechanism(
            allowed=Channel.LOCAL,
            expected_count=row.plan.sampler.expected_batch_size(len(index)),
            rng=stream(self.config.seed, "noise", "local", *place, client_id),
        )
        rng = stream(self.config.seed, "method", *place, client_id)
        personal = state.personal[client_id]
        return row.method.client_step(self.federation.model, state.shared, personal, batch, mechanism, rng)


def _progress(config: RunConfig, folder: Path) -> Progress:
    """Read the checkpoint's progress, or give that of a fresh run."""
    identity = config.identity()
    progress = checkpoint.load_progress(folder)
    if progress is None:
        return Progress(
            config_identity=identity, row_index=0, num_rounds_done=0, row_seconds=0.0, records_size=0, finished_rows=[]
        )
    if progress.config_identity != identity:
        raise ResumeError(f"The checkpoint in {folder} belongs to another config. Use another folder.")
    return progress


def _mean(values: list[float]) -> float:
    """Give the mean, NaN of nothing."""
    return sum(values) / len(values) if values else math.nan


def _num_workers(config: RunConfig) -> int:
    """Number of clients that run side by side."""
    return config.runtime.num_threads or len(os.sched_getaffinity(0))
