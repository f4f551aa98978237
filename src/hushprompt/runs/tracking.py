"""TensorBoard and MLflow as observers of a run: what `records.jsonl` holds, where other tools look for it.

The records stay the one source of truth: whoever starts or resumes a run finds every round of them once, whenever the
run was killed. Values that no guarantee covers stand under `not_private/`; infinite ones (epsilon without noise) and
unknown ones are left out, since neither tool can draw them.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hushprompt import extras, files
from hushprompt.config.overrides import flat
from hushprompt.config.schema import RunConfig
from hushprompt.privacy.statements import SIMULATION
from hushprompt.runs import records
from hushprompt.runs.arm import Arm
from hushprompt.runs.observer import NoProgress, Observer, Several
from hushprompt.runs.records import RoundRecord

TENSORBOARD_FOLDER = "tensorboard"
"""In the run folder; below it one folder an arm."""
MLFLOW_FILE = "mlflow.json"
"""In the run folder: which MLflow run holds which arm, for a resume."""
EXPERIMENT = "hushprompt"


@contextlib.contextmanager
def tracked(config: RunConfig, folder: Path, observer: Observer) -> Iterator[Observer]:
    """Return an observer that also feeds what the runtime section asks for; closes it however the run ends.

    Raises:
        ConfigError: a package that is needed is missing; nothing is written then.
    """
    trackers: list[TensorBoard | MLflow] = []
    if config.runtime.tensorboard:
        trackers.append(TensorBoard(folder))
    if config.runtime.mlflow:
        trackers.append(MLflow(config, folder))
    is_finished = False
    try:
        yield Several([*trackers, observer]) if trackers else observer
        is_finished = True
    finally:
        for tracker in trackers:
            tracker.close(is_finished=is_finished)


def scalars(record: RoundRecord) -> dict[str, float]:
    """Return the finite values of a round by the names under which they are logged.

    Accuracies are read from evaluation images: exactly, which no guarantee covers either, or from noisy counts
    (evaluation.metrics_epsilon); the privacy statement says which.
    """
    simulation = f"{SIMULATION}_" if record.noise_source == "seeded" else ""
    values = {
        **{
            f"accuracy/{name}": getattr(record, name) for name in ("local", "neighbor", "harmonic_mean", "worst_client")
        },
        **{f"privacy/{simulation}epsilon_{audience}": epsilon for audience, epsilon in record.epsilon.items()},
        "cost/seconds": record.seconds,
        "cost/bytes_up": float(record.bytes_up),
        "cost/bytes_down": float(record.bytes_down),
        "not_private/loss": record.loss,
    }
    return {name: value for name, value in values.items() if math.isfinite(value)}


class TensorBoard(NoProgress):
    """Writes event files into the run folder, afresh from the records whenever a run starts or goes on."""

    def __init__(self, folder: Path) -> None:
        """Find the writer; nothing is written before the first arm begins.

        Raises:
            ConfigError: tensorboard is missing.
        """
        self._make_writer = extras.load("torch.utils.tensorboard", "tensorboard", "runtime.tensorboard").SummaryWriter
        self._folder = folder
        self._writers: dict[str, Any] = {}
        self._has_begun = False

    def on_arm(self, arm: Arm, index: int, num_arms: int, num_rounds_done: int) -> None:
        """Write the rounds on the disk again, once; then the arm's privacy statement."""
        if not self._has_begun:
            self._has_begun = True
            shutil.rmtree(self._folder / TENSORBOARD_FOLDER, ignore_errors=True)
            for record in records.recorded(self._folder):
                self.on_round(record)
        if arm.plan.channels:
            statements = [f"For {who}: {guarantee.statement()}" for who, guarantee in arm.plan.guarantees().items()]
            self._writer(arm.label).add_text("privacy", "\n\n".join(statements))

    def on_round(self, record: RoundRecord) -> None:
        """Write a round, to the disk at once."""
        writer = self._writer(record.arm)
        for name, value in scalars(record).items():
            writer.add_scalar(name, value, record.round_index)
        writer.flush()

    def close(self, *, is_finished: bool) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()

    def _writer(self, label: str) -> Any:
        if label not in self._writers:
            name = re.sub(r"[^\w.#-]+", "_", label)
            self._writers[label] = self._make_writer(str(self._folder / TENSORBOARD_FOLDER / name))
        return self._writers[label]


class MLflow(NoProgress):
    """Logs every arm as an MLflow run of its own; on a resume it goes on behind the last step that is there."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        """Connect; nothing is logged before the first arm begins.

        Raises:
            ConfigError: mlflow is missing.
        """
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # a run tells nobody about itself unless asked to
        mlflow = extras.load("mlflow", "mlflow", "runtime.mlflow")
        self._metric, self._param = mlflow.entities.Metric, mlflow.entities.Param
        where = config.runtime.mlflow
        if "://" not in where:
            Path(where).expanduser().mkdir(parents=True, exist_ok=True)
        self._client = mlflow.MlflowClient(tracking_uri=tracking_uri(where))
        self._config = config
        self._folder = folder
        self._runs: dict[str, str] = {}
        self._last_steps: dict[str, int] = {}
        self._open: str | None = None

    def on_arm(self, arm: Arm, index: int, num_arms: int, num_rounds_done: int) -> None:
        """End the arm before, and start the arm's run or go on with it; rounds it lacks are logged from the records."""
        self._end("FINISHED")
        path = self._folder / MLFLOW_FILE
        if not self._runs and path.exists():
            self._runs = records.read_json(path)
        if arm.label in self._runs:
            self._client.update_run(self._runs[arm.label], status="RUNNING")
        else:
            self._runs[arm.label] = self._create(arm)
            files.write_text(path, json.dumps(self._runs, indent=2) + "\n")
        self._open = self._runs[arm.label]
        history = self._client.get_metric_history(self._open, "cost/seconds")
        self._last_steps[arm.label] = max((metric.step for metric in history), default=0)
        for record in records.recorded(self._folder):
            if record.arm == arm.label:
                self.on_round(record)

    def on_round(self, record: RoundRecord) -> None:
        """Log a round that is not there yet."""
        if record.round_index <= self._last_steps[record.arm]:
            return
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, record.round_index) for name, value in scalars(record).items()]
        self._client.log_batch(self._runs[record.arm], metrics=metrics)
        self._last_steps[record.arm] = record.round_index

    def close(self, *, is_finished: bool) -> None:
        """End the arm that was open."""
        self._end("FINISHED" if is_finished else "KILLED")

    def _end(self, status: str) -> None:
        """Set the status of the open run."""
        if self._open is not None:
            self._client.set_terminated(self._open, status)
            self._open = None

    def _create(self, arm: Arm) -> str:
        """Create the run of an arm, with its settings and its privacy statement."""
        found = self._client.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found is not None else self._client.create_experiment(EXPERIMENT)
        accuracies = " and accuracies" if self._config.evaluation.metrics_epsilon is None else ""
        tags = {
            "hushprompt.arm": arm.label,
            "hushprompt.folder": str(self._folder.resolve()),
            "hushprompt.config_identity": self._config.identity(),
            "hushprompt.not_private": f"Metrics under not_private/{accuracies} are covered by no guarantee.",
        }
        if arm.plan.channels:
            for who, guarantee in arm.plan.guarantees().items():
                tags[f"hushprompt.privacy.{who}"] = guarantee.statement()
        run_id: str = self._client.create_run(experiment, run_name=arm.label, tags=tags).info.run_id
        params = {**flat(tomllib.loads(self._config.to_toml())), "arm": arm.label}
        self._client.log_batch(run_id, params=[self._param(key, str(value)) for key, value in params.items()])
        return run_id


def tracking_uri(where: str) -> str:
    """Return MLflow's name of a place: an address stays, anything else is a folder that gets a database of its own.

    >>> tracking_uri("http://localhost:5000"), tracking_uri("/data/experiments")
    ('http://localhost:5000', 'sqlite:////data/experiments/mlflow.db')
    """
    return where if "://" in where else f"sqlite:///{Path(where).expanduser().resolve() / 'mlflow.db'}"
