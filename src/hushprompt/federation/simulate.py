"""The loop for one process: the one place that calls the rooms in order.

Every arm of a run (the references, then the method itself) is trained and accounted for on its own, with batches and
noise of its own. Whoever publishes several arms of one run publishes several releases of the same data.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt import files
from hushprompt.config.schema import RunConfig
from hushprompt.errors import ResumeError
from hushprompt.evaluation.answers import ANSWER_SCORES
from hushprompt.evaluation.evaluate import (
    NewClasses,
    Scores,
    evaluate,
    evaluate_answers,
    mean_scores,
    right_or_not,
)
from hushprompt.evaluation.metrics import confusion, predicted_classes
from hushprompt.evaluation.private import count_right, scores_of
from hushprompt.federation.planning import plan_arms, plan_metrics
from hushprompt.federation.rounding import check_rounding
from hushprompt.federation.scoring import Scoring
from hushprompt.federation.setup import (
    Federation,
    Load,
    assemble,
    client_sizes,
    declared_classes,
    load_data,
    load_fresh,
    load_model,
    make_partition,
    num_trained_classes,
    tell_findings,
)
from hushprompt.federation.training import Participants, RoundInfo, train
from hushprompt.methods.base import StartsFromRelease
from hushprompt.privacy.metrics import MetricsPlan, RightAnswers
from hushprompt.runs import checkpoint, ledger, manifest, records
from hushprompt.runs import identity as identities
from hushprompt.runs.arm import Arm
from hushprompt.runs.checkpoint import Checkpoints, Progress
from hushprompt.runs.counts import confusion_record, partition_record
from hushprompt.runs.identity import IdentityFile, RunIdentity, identity_of
from hushprompt.runs.ledger import LedgerFile
from hushprompt.runs.metrics import MetricsFile
from hushprompt.runs.observer import Observer
from hushprompt.runs.privacy_record import privacy_record
from hushprompt.runs.prompts import write_prompts
from hushprompt.runs.records import ArmSummary, provenance
from hushprompt.runs.state import State
from hushprompt.runs.tracking import tracked
from hushprompt.seeding import stream


def run(config: RunConfig, folder: Path, observer: Observer, load: Load = load_fresh) -> list[ArmSummary]:
    """Train, evaluate and account for every arm; go on where a checkpoint in `folder` stopped.

    Killed at any moment and called again, it leaves the same files, measured seconds aside, as if it had gone through.

    Args:
        config: what to run; the runtime section may differ between calls.
        folder: the run folder, which exists.
        observer: who watches.
        load: loads data set and backbone; who makes many runs may keep what it loaded.

    Returns:
        The arms of the result table, the method itself last.

    Raises:
        ConfigError: the config is impossible for this data, or outside the privacy theorem.
        ResumeError: the folder is in use, damaged, or was begun with other data, another model or another config.
    """
    with records.locked(folder), tracked(config, folder, observer) as observer:
        dataset = load_data(config, load)
        partition = make_partition(config, dataset)
        sizes = client_sizes(partition)
        identity = IdentityFile(folder, config)
        identity.check(identity_of(config, dataset, zip(partition.client_names, sizes, strict=True)))
        declared = declared_classes(config, dataset.class_names[: num_trained_classes(config, dataset)])
        arms = plan_arms(config, sizes, declared)
        tell_findings(config, dataset, partition, arms, declared)
        metrics = plan_metrics(config, arms, partition)
        progress = _progress(config, folder)
        records.truncate_records(folder / "records.jsonl", progress.records_size)
        model = load_model(config, dataset, arms, load)
        kinds = {stage.method.feature_kind for arm in arms for stage in arm.stages}
        identity.check(backbone=model.backbone.fingerprint)  # before images are encoded
        federation = assemble(config, model, dataset, partition, observer.on_setup, kinds)
        identity.check(features=federation.checksums)
        identity.keep(has_begun=(folder / checkpoint.FILE).exists() or (folder / ledger.FILE).exists())
        records.write_compact_json(folder / "partition.json", partition_record(dataset, partition))
        # Clients run side by side on one thread each, so results do not depend on the number of cores.
        with (
            ThreadPoolExecutor(_num_workers(config), initializer=torch.set_num_threads, initargs=(1,)) as pool,
            ThreadPoolExecutor(1) as disk,
        ):
            where = config.runtime.cache_path
            list(pool.map(lambda arm: check_rounding(arm, model, where, observer.on_setup), arms))
            checkpoints = Checkpoints(folder, progress)
            trainer = Trainer(config, federation, folder, pool, disk, observer, checkpoints, metrics, identity.digest)
            for index, arm in enumerate(arms):
                if index < progress.arm_index:
                    continue
                observer.on_arm(arm, index, len(arms), progress.num_rounds_done)
                state, progress, stopped = trainer.train(arm, progress)
                progress = trainer.close_arm(arm, state, progress, stopped)
                if index == len(arms) - 1:
                    trainer.publish(arms, state, progress, identity.recorded)
                progress = trainer.checkpoints.save(state, progress)
    return [records.from_json(ArmSummary, values) for values in progress.finished_arms]


class Trainer:
    """Trains one arm after another over one federation, leaving a checkpoint after every round."""

    def __init__(
        self,
        config: RunConfig,
        federation: Federation,
        folder: Path,
        pool: ThreadPoolExecutor,
        disk: ThreadPoolExecutor,
        observer: Observer,
        checkpoints: Checkpoints,
        metrics: MetricsPlan | None = None,
        identity: str = "",
    ) -> None:
        """Hold what stays the same from arm to arm; with `metrics`, accuracies come from noisy counts.

        Clients run in `pool`; `disk` waits for the disk beside them.
        """
        self.config = config
        self.federation = federation
        self.folder = folder
        self.pool = pool
        self.disk = disk
        self.observer = observer
        self.checkpoints = checkpoints
        self.ledger = LedgerFile(folder, federation.partition.client_names, identity)
        self.metrics = metrics
        self.released = MetricsFile(folder)
        self._scoring = Scoring(pool, _num_workers(config), federation.quiz, is_counted=metrics is not None)
        self.participants = Participants(config, federation, pool)
        self._progress: Progress
        self._start: float
        self._epsilons: Future[dict[str, float]]
        self._staged: Future[None]
        """Of the arm and round in training."""
        self._predicted: tuple[State, dict[int, Int[np.ndarray, " n"]]] | None = None
        """What was scored last, and what each client's prompt took the evaluation images for."""

    def train(self, arm: Arm, progress: Progress) -> tuple[State, Progress, str | None]:
        """Train an arm from the start, or from the checkpoint in the folder; also say why it ended early, if it did."""
        self.ledger.check(arm, progress.num_rounds_done)
        if progress.has_started and arm.start is not None:
            self.ledger.check(arm.start, arm.start.num_rounds)
        if self.metrics is not None:
            self.released.check(arm, progress.num_rounds_done, self.config.evaluation)
        shared, personal = arm.method.init(self.federation.model, stream(self.config.seed, "init"))
        num_clients = len(self.federation.partition.clients)
        state = State(shared, (personal,) * num_clients, arm.plan.release_plan.first_norms(num_clients))
        if progress.is_under_way:
            state = checkpoint.load_state(self.folder, state)
        self._progress = progress
        stopped: str | None = None
        if arm.start is not None and not progress.has_started:
            state, stopped = self._begin(arm, arm.start, state)
        if stopped is None:
            state, stopped = train(arm, state, self.participants, self, progress.num_rounds_done)
        return state, self._progress, stopped

    def _begin(self, arm: Arm, start: Arm, state: State) -> tuple[State, str | None]:
        """Make the release that an arm starts from, and keep the state that follows: it is charged and made once."""
        assert isinstance(arm.method, StartsFromRelease), "or it would have no start"
        books = StartBooks(self.ledger, self.folder, self._progress.records_size)
        shared, personal = start.method.init(self.federation.model, stream(self.config.seed, "init"))
        begun = State(shared, (personal,) * len(state.personal))
        released, stopped = train(start, begun, self.participants, books)
        if stopped is not None:
            return state, stopped
        # On a thread of the pool: its last bits do not depend on the number of cores.
        fit = self.pool.submit(arm.method.started, self.federation.model, state.shared, start.method, released.shared)
        state = dataclasses.replace(state, shared=fit.result())
        self._progress = dataclasses.replace(
            self._progress, has_started=True, records_size=books.records_size,
            arm_seconds=time.perf_counter() - books.start,
        )  # fmt: skip
        self._progress = self.checkpoints.save(state, self._progress)
        return state, None

    def charge(self, arm: Arm, round_index: int) -> str | None:
        """Charge a round to the ledger, on disk before this returns; or say why the budget forbids it.

        Raises:
            ResumeError: the budget was spent on a first round that was lost, so there is nothing to publish.
        """
        self._start = time.perf_counter()
        stopped = charge(self.ledger, arm, round_index)
        if stopped is None:  # accounted for beside the round
            self._epsilons = self.pool.submit(epsilons, self.ledger.begun(arm), self.ledger.of(arm.label).most_rounds)
        return stopped

    def score(self, arm: Arm, state: State, info: RoundInfo) -> Scores | None:
        """Score the prompts if the config says so, while personal states go to the disk."""
        self._progress = dataclasses.replace(self._progress, num_rounds_done=info.num_done)
        self._staged = self.disk.submit(self.checkpoints.stage, state, self._progress, info.clients)
        evaluation = self.config.evaluation
        if not evaluation.is_due(info.num_done, arm.num_rounds):
            return None
        is_reported = evaluation.is_reported(info.num_done, arm.num_rounds)
        return self._scores(arm, state, info.num_done, with_new_classes=is_reported)

    def record(self, arm: Arm, state: State, info: RoundInfo, scores: Scores | None) -> None:
        """Append the round's record, then commit the checkpoint that counts it."""
        progress, seconds = self._progress, time.perf_counter() - self._start
        record = info.record(arm, scores, seconds, self._epsilons.result())
        is_reported = self.config.evaluation.is_reported(info.num_done, arm.num_rounds)
        progress = dataclasses.replace(
            progress,
            arm_seconds=progress.arm_seconds + seconds,
            records_size=records.append_record(self.folder / "records.jsonl", record),
            last_scores=[*progress.last_scores, dataclasses.asdict(scores)] if scores and is_reported else [],
        )
        self._staged.result()
        self._progress = self.checkpoints.save(state, progress)
        self.observer.on_round(record)

    def evaluate(self, arm: Arm, state: State, *, with_new_classes: bool = False) -> Scores:
        """Score every client's prompt on all evaluation images, and on classes that nobody trains on."""
        federation, logits_fn = self.federation, self._eval_logits_fn(arm, state)
        if federation.quiz is not None:
            return evaluate_answers(logits_fn, federation.splits, map_fn=self.pool.map)
        predicted: dict[int, Int[np.ndarray, " n"]] = {}
        new_classes = None
        if federation.new is not None and with_new_classes:
            features = federation.new.features[arm.method.feature_kind]
            new_classes = NewClasses(
                self._scoring.logits_fn(arm.method, state, federation.new.model, features), federation.new.labels
            )
        scores = evaluate(
            logits_fn,
            federation.eval_labels,
            federation.splits,
            new_classes=new_classes,
            predicted=predicted,
            map_fn=self.pool.map,
        )
        self._predicted = (state, predicted)
        return scores

    def released_scores(self, arm: Arm, state: State, num_done: int, metrics: MetricsPlan) -> Scores:
        """Score every client's prompt after `num_done` rounds from noisy counts, which are made once."""
        federation, logits_fn = self.federation, self._eval_logits_fn(arm, state)
        is_open, labels = federation.quiz is not None, federation.eval_labels

        def score(client_id: int) -> Float[Tensor, "n c"]:
            found = logits_fn(client_id)
            return right_or_not(found) if is_open else found

        def make() -> RightAnswers:
            counts = count_right(
                score,
                torch.ones_like(labels) if is_open else labels,
                federation.splits,
                map_fn=self.pool.map,
            )
            return metrics.release(counts, stream(self.config.seed, "noise", "metrics", arm.label, num_done))

        return scores_of(self.released.once(arm, num_done, make), federation.splits)

    def close_arm(self, arm: Arm, state: State, progress: Progress, stopped: str | None) -> Progress:
        """Sum up the trained arm and add its summary to the finished ones."""
        start = time.perf_counter()
        if progress.last_scores:
            scores = mean_scores([records.from_json(Scores, values) for values in progress.last_scores])
        else:
            scores = self._scores(arm, state, progress.num_rounds_done, with_new_classes=True)
        if self.metrics is None and self.federation.quiz is None:
            self._write_confusion(arm, state, progress.arm_index)
        audience, plan = arm.plan.config.audience, self.ledger.spent(arm).plan
        summary = ArmSummary(
            arm=arm.label,
            method=arm.method_name,
            title=arm.method.title,
            epsilon=plan.epsilon(audience) if plan.channels else None,
            delta=arm.plan.config.delta,
            audience=str(audience),
            local=scores.local,
            neighbor=scores.neighbor,
            harmonic_mean=scores.harmonic_mean,
            worst_client=scores.worst_client,
            calibration_error=scores.calibration_error,
            seconds=progress.arm_seconds + time.perf_counter() - start,
            seed=self.config.seed,
            num_rounds=progress.num_rounds_done,
            stopped=stopped,
            per_client=[
                {name: score for name, score in dataclasses.asdict(client).items() if score is not None}
                for client in scores.clients
            ],
            per_class=list(scores.per_class),
            num_last_rounds=max(1, len(progress.last_scores)),
            base=scores.base,
            new=scores.new,
            base_new_harmonic_mean=scores.base_new_harmonic_mean,
            is_open=self.federation.quiz is not None,
            **{name: getattr(scores, name) for name in ANSWER_SCORES},
            noise_source=plan.release_plan.noise_source if plan.channels else None,
        )
        return dataclasses.replace(
            progress,
            arm_index=progress.arm_index + 1,
            num_rounds_done=0,
            has_started=False,
            arm_seconds=0.0,
            finished_arms=[*progress.finished_arms, records.to_json(summary)],
            last_scores=[],
        )

    def publish(self, arms: list[Arm], state: State, progress: Progress, identity: RunIdentity | None) -> None:
        """Write what a finished run publishes: prompts, privacy record, hashes; the summary comes last."""
        spent, prompts = self.ledger.spent(arms[-1]), dict(enumerate(state.personal))
        # On a thread of the pool: its last bits do not depend on the number of cores.
        self.pool.submit(
            write_prompts, self.folder / "prompts", self.federation.model, spent, state.shared, prompts,
            backbone=self.config.backbone, client_names=self.federation.partition.client_names,
        ).result()  # fmt: skip
        statement = privacy_record(*self.ledger.outcome(arms), self.metrics, self.released.num_releases)
        records.write_json(self.folder / "privacy.json", statement)
        summary = {"arms": progress.finished_arms, "provenance": provenance(self.config), "identity": identity}
        text = records.json_text(summary)
        manifest.write(self.folder, {"summary.json": text})
        files.write_text(self.folder / "summary.json", text)

    def _write_confusion(self, arm: Arm, state: State, arm_index: int) -> None:
        """Write what the trained arm takes for what; an arm that is closed again after a kill writes the same file."""
        federation = self.federation
        counts = confusion(
            self._predict_fn(arm, state),
            federation.eval_labels,
            federation.splits,
            num_classes=len(federation.model.class_names),
            map_fn=self.pool.map,
        )
        path = self.folder / "confusion" / f"arm-{arm_index:03d}.json"
        records.write_compact_json(path, confusion_record(arm, counts))

    def _predict_fn(self, arm: Arm, state: State) -> Callable[[int], Int[np.ndarray, " n"]]:
        """Return what a client's prompt takes the evaluation images for; scored already, it is known."""
        if self._predicted is not None and self._predicted[0] is state:
            return self._predicted[1].__getitem__
        logits_fn = self._eval_logits_fn(arm, state)
        return lambda client_id: predicted_classes(logits_fn(client_id))

    def _scores(self, arm: Arm, state: State, num_done: int, *, with_new_classes: bool) -> Scores:
        """Score the prompts exactly, or from noisy counts where the config asks for that."""
        if self.metrics is not None:
            return self.released_scores(arm, state, num_done, self.metrics)
        return self.evaluate(arm, state, with_new_classes=with_new_classes)

    def _eval_logits_fn(self, arm: Arm, state: State) -> Callable[[int], Float[Tensor, "n c"]]:
        """Return what computes a client's logits of all evaluation images."""
        features = self.federation.eval_features[arm.method.feature_kind]
        return self._scoring.logits_fn(arm.method, state, self.federation.model, features)


def _progress(config: RunConfig, folder: Path) -> Progress:
    """Read the checkpoint's progress, or give that of a fresh run."""
    identity = config.identity()
    progress = checkpoint.load_progress(folder)
    if progress is None:
        return Progress(
            config_identity=identity, arm_index=0, num_rounds_done=0, arm_seconds=0.0, records_size=0, finished_arms=[]
        )
    if not (folder / identities.FILE).exists() and progress.config_identity != identity:
        raise ResumeError(f"The checkpoint in {folder} belongs to another config. Use another folder.")
    return progress


class StartBooks:
    """Books of the release that an arm starts from: charged before, written down, not scored."""

    def __init__(self, ledger: LedgerFile, folder: Path, records_size: int) -> None:
        """Go on with a run folder's ledger and records."""
        self.ledger, self.folder, self.records_size = ledger, folder, records_size
        self.start = time.perf_counter()

    def charge(self, arm: Arm, round_index: int) -> str | None:
        """Charge the release, on disk before this returns; or say why the budget forbids it."""
        return charge(self.ledger, arm, round_index)

    def score(self, arm: Arm, state: State, info: RoundInfo) -> None:
        """Score nothing: what starts from the release is no state of its method."""

    def record(self, arm: Arm, state: State, info: RoundInfo, scores: Scores | None) -> None:
        """Append the release's record; the checkpoint that counts it comes with what follows from it."""
        epsilon = epsilons(arm, self.ledger.of(arm.label).most_rounds)
        record = info.record(arm, scores, time.perf_counter() - self.start, epsilon)
        self.records_size = records.append_record(self.folder / "records.jsonl", record)


def charge(ledger: LedgerFile, arm: Arm, round_index: int) -> str | None:
    """Charge a round to the ledger, on disk before this returns; or say why the budget forbids it.

    Raises:
        ResumeError: the budget was spent on a first round that was lost, so there is nothing to publish.
    """
    was_begun = ledger.of(arm.label).num_rounds > 0
    stopped = ledger.charge(arm, round_index, arm.cohorts[round_index].tolist())
    if stopped is not None and was_begun and round_index == 0:
        raise ResumeError(
            f"{stopped}. Nothing of {arm.label} was published, and its budget is spent. A new run, in a new folder, "
            "spends another one on the same data, and the two add up."
        )
    return stopped


def epsilons(arm: Arm, num_rounds: int) -> dict[str, float]:
    """Return every audience's epsilon after some rounds, one after the other: several may see the same releases."""
    return {str(audience): arm.plan.epsilon(audience, num_rounds) for audience in arm.plan.audiences}


def _num_workers(config: RunConfig) -> int:
    """Number of clients that run side by side."""
    return config.runtime.num_threads or len(os.sched_getaffinity(0))
