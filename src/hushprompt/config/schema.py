"""One frozen RunConfig: TOML in, `--set` overrides in, resolved TOML out.

A section is the dataclass that uses it. Sections that offer a choice (`backbone`, `data`, `partition`, `sampling`,
`method`) name a registered class by `name`; the other keys are its fields.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tomli_w

from hushprompt import checks
from hushprompt.errors import PrivacyError
from hushprompt.registry import BACKBONES, DATASETS, METHODS, PARTITIONS, SAMPLERS, SECTIONS

if TYPE_CHECKING:
    from hushprompt.features.cache import FeaturesConfig
    from hushprompt.methods.base import Method
    from hushprompt.privacy.config import PrivacyConfig
    from hushprompt.privacy.sampling import Sampler

CHOICES = {
    "backbone": BACKBONES,
    "data": DATASETS,
    "partition": PARTITIONS,
    "sampling": SAMPLERS,
    "method": METHODS,
}
"""Sections that name a registered class, and where it is looked up."""


@SECTIONS.register("training")
@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The `training` section."""

    num_rounds: int = 20
    """Communication rounds."""
    cohort_size: int | None = None
    """Clients that take part in a round, by a public schedule that gives every client its turn equally often; "none"
    takes everyone, every round."""
    dropout_rate: float = 0.0
    """Probability that a client of the cohort fails in a round, before it sends anything; its budget is charged."""
    local_steps: int = 1
    """Steps that a client takes on its own copy of what is shared before the server averages the copies (FedAvg); 1 has
    one common step after each batch. More need noise_at = "client". Must divide sampling.steps_per_round."""
    weighting: Literal["size", "equal"] = "size"
    """Weight of a client where the server averages what clients made private themselves: its public number of training
    examples, or the same for all. Sums, which have noise_at = "server", weigh every example alike."""

    def __post_init__(self) -> None:
        """Check the fields."""
        checks.non_negative(num_rounds=self.num_rounds)
        checks.in_range(0, 1, dropout_rate=self.dropout_rate)
        checks.positive(local_steps=self.local_steps)
        if self.cohort_size is not None:
            checks.positive(cohort_size=self.cohort_size)


@SECTIONS.register("evaluation")
@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The `evaluation` section."""

    split: Literal["test", "validation"] = "test"
    """Images that are scored. Choose settings on "validation", report "test"."""
    every: int = 1
    """Rounds from one evaluation to the next; those whose scores are reported are always evaluated."""
    last_rounds: int = 1
    """Rounds at the end whose scores are averaged to the reported ones; never the best round."""
    base_classes: float | None = None
    """Base-to-new evaluation: clients train on the first classes alone, this many or (below 1) this share of them, and
    the prompts are scored on the others too; "none" trains on all classes."""
    metrics_epsilon: float | None = None
    """Epsilon of one evaluation image over all accuracies of the run, which then come from noisy counts; "none" gives
    exact accuracies, which are not private: simulation only."""
    metrics_delta: float = 1e-5
    """Delta of metrics_epsilon; must be below 1 / (evaluation images of the largest client)."""

    def __post_init__(self) -> None:
        """Check the fields."""
        checks.positive(every=self.every, last_rounds=self.last_rounds)
        if self.base_classes is not None:
            checks.positive(base_classes=self.base_classes)
        if not 0 < self.metrics_delta < 1:
            raise PrivacyError(f"metrics_delta must lie in (0, 1), got {self.metrics_delta}.")
        if self.metrics_epsilon is None:
            return
        checks.positive(metrics_epsilon=self.metrics_epsilon)
        if math.isinf(self.metrics_epsilon):
            raise PrivacyError('metrics_epsilon = inf would be no guarantee. For exact accuracies take "none".')
        if self.base_classes is not None:
            raise PrivacyError(
                "evaluation.metrics_epsilon does not account for scores on new classes. Leave evaluation.base_classes "
                "out, or metrics_epsilon."
            )

    def is_reported(self, num_done: int, num_rounds: int) -> bool:
        """Whether the scores after `num_done` of `num_rounds` rounds enter the reported ones."""
        return num_done > num_rounds - self.last_rounds

    def is_due(self, num_done: int, num_rounds: int) -> bool:
        """Whether the prompts are scored after `num_done` of `num_rounds` rounds."""
        return num_done % self.every == 0 or self.is_reported(num_done, num_rounds)

    def num_due(self, num_rounds: int) -> int:
        """Return how often an arm of `num_rounds` rounds is scored at most: one that is not trained, once.

        An arm that is stopped early is scored where it stops, in the place of a later round.
        """
        return max(1, sum(self.is_due(num_done, num_rounds) for num_done in range(1, num_rounds + 1)))


@SECTIONS.register("runtime")
@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """The `runtime` section: where and how fast, never what. Not part of the config's identity."""

    num_threads: int = 0
    """CPU threads of the arithmetic; 0 takes all cores. Resume with the same number for the same last bits."""
    memory_mb: int = 0
    """Memory in MB that the backward passes of one client's step may take, beside its one forward pass; 0 is 160 on a
    CPU, where num_threads clients take it at once and small parts stay in the cache, and 4096 on a GPU. Larger batches
    go in parts, which changes results by rounding alone."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where the towers and prompts are: "cuda" for a GPU, "auto" for a GPU if there is one and the backbone can use it.
    Noise is drawn on the CPU in any case, so devices differ by rounding alone."""
    cache_dir: str = ""
    """Folder for cached features; empty: $XDG_CACHE_HOME/hushprompt or ~/.cache/hushprompt."""
    tensorboard: bool = False
    """Also write TensorBoard event files into the run folder; needs the extra tensorboard."""
    mlflow: str = ""
    """Also log to MLflow, at this address or in this folder; empty: not. Needs the extra mlflow."""

    def __post_init__(self) -> None:
        """Check the fields."""
        checks.non_negative(num_threads=self.num_threads, memory_mb=self.memory_mb)

    @property
    def cache_path(self) -> Path:
        """The cache folder as a path."""
        if self.cache_dir:
            return Path(self.cache_dir).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hushprompt"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One more arm of the table: another method, or another budget, everything else the same."""

    method: Method
    """Method of the arm; left out in TOML: the run's own."""
    epsilon: float | None = None
    """Target epsilon of the arm; left out in TOML: the run's own privacy section."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides the result of a run, and the runtime."""

    seed: int = 1
    """Root of all random streams."""
    backbone: Any
    """Frozen model."""
    data: Any
    """Data set."""
    features: FeaturesConfig
    """What is kept of every image: views and precision."""
    partition: Any
    """How the data set is cut into clients."""
    sampling: Sampler
    """How a client draws its batches."""
    method: Method
    """What is learned and sent."""
    privacy: PrivacyConfig
    """Budget, clip norms, audience."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Rounds."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What is scored."""
    references: tuple[Reference, ...] = ()
    """Arms to compare with, trained before the method itself."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """Threads and folders."""

    def to_toml(self) -> str:
        """Return the resolved config as TOML; `parse(tomllib.loads(...))` gives it back."""
        return tomli_w.dumps(_to_plain(self))

    def identity(self) -> str:
        """SHA-256 of everything but the runtime: equal configs give equal results."""
        plain = _to_plain(self)
        del plain["runtime"]
        return hashlib.sha256(tomli_w.dumps(plain).encode()).hexdigest()


def _to_plain(value: Any) -> Any:
    """Turn a config into what TOML can say; None becomes "none"."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {f.name: _to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        for registry in CHOICES.values():
            if registry.has(type(value)):
                return {"name": registry.name_of(value), **plain}
        return plain
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [_to_plain(entry) for entry in value]
    return "none" if value is None else value
