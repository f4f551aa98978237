"""One frozen RunConfig: TOML in, `--set` overrides in, resolved TOML out.

A section is the dataclass that uses it. Sections that offer a choice (`backbone`, `data`, `partition`, `sampling`,
`method`) name a registered class by `name`; the other keys are its fields.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import tomli_w

from hushprompt import checks
from hushprompt.config import presets
from hushprompt.config.overrides import with_sections
from hushprompt.config.values import CHOICES, choose, convert, refuse_unknown, section, to_plain
from hushprompt.errors import ConfigError, PrivacyError
from hushprompt.registry import METHODS, SECTIONS

if TYPE_CHECKING:
    from hushprompt.features.cache import FeaturesConfig
    from hushprompt.methods.base import Method
    from hushprompt.privacy.config import PrivacyConfig
    from hushprompt.privacy.sampling import Sampler


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
    examples, or the same for all. Sums, which have noise_at = "server" or "shares", weigh every example alike."""

    def __post_init__(self) -> None:
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
    """Delta of metrics_epsilon; must be below 0.1 and below 1 / (evaluation images of the largest client)."""

    max_answer_tokens: int = 32
    """Tokens after which an answer to a question is cut off, where the data have questions."""

    def __post_init__(self) -> None:
        checks.positive(every=self.every, last_rounds=self.last_rounds, max_answer_tokens=self.max_answer_tokens)
        if self.base_classes is not None:
            checks.positive(base_classes=self.base_classes)
        checks.delta(metrics_delta=self.metrics_delta)
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
    go in parts, which changes results by rounding alone. A generative model takes one example at a time at least; what
    the C library's allocator holds beside tensors is estimated (docs/mllm.md)."""
    prefix_cache_mb: int = 0
    """Memory in MB for what a generative model made of image and question, where the prompt stands behind them; 0 reads
    them anew in every step. Results change by rounding alone."""
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
        checks.non_negative(
            num_threads=self.num_threads, memory_mb=self.memory_mb, prefix_cache_mb=self.prefix_cache_mb
        )

    @property
    def cache_path(self) -> Path:
        """The cache folder as a path."""
        if self.cache_dir:
            return Path(self.cache_dir).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hushprompt"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One more arm of the table: another method, or another budget, everything else the same."""

    method: Any = None
    """Method of the arm, or its name; left out: the run's own."""
    epsilon: float | None = None
    """Target epsilon of the arm; left out: the run's own privacy section."""

    def __post_init__(self) -> None:
        if self.epsilon is not None:
            checks.positive(epsilon=self.epsilon)


GROUP_SETTINGS = {"group_pattern", "group_column", "group_key", "group_size"}
"""Settings of data that older versions had not; as they stand by default they mean the same as without them."""


@functools.cache
def preset() -> dict[str, Any]:
    """Return the plain values of the embedded preset, from which `RunConfig` has its defaults."""
    return presets.read(presets.locate(None))


def preset_section(name: str) -> Any:
    """Return the plain values of one of its sections; where it says nothing, the class's own defaults count."""
    return preset().get(name, {})


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides the result of a run, and the runtime. `RunConfig()` is the embedded preset.

    A section can be given as an object, as a table of settings, which changes those of the preset, or, where it is a
    choice, by name. What is left out is the preset's.

    >>> config = RunConfig(method="promptfl", training={"num_rounds": 5})
    >>> config.training.num_rounds, config.partition.num_clients
    (5, 10)
    """

    seed: int = 1
    """Root of all random streams."""
    backbone: Any = field(default_factory=lambda: preset_section("backbone"))
    """Frozen model."""
    data: Any = field(default_factory=lambda: preset_section("data"))
    """Data set."""
    features: FeaturesConfig = field(default_factory=lambda: preset_section("features"))
    """What is kept of every image: views and precision."""
    partition: Any = field(default_factory=lambda: preset_section("partition"))
    """How the data set is split over the clients."""
    sampling: Sampler = field(default_factory=lambda: preset_section("sampling"))
    """How a client draws its batches. A method that makes one release of every example draws none and does not look at
    it; a file where no other method trains may leave it out."""
    method: Method = field(default_factory=lambda: preset_section("method"))
    """What is learned and sent."""
    privacy: PrivacyConfig = field(default_factory=lambda: preset_section("privacy"))
    """Budget, clip norms, audience."""
    training: TrainingConfig = field(default_factory=lambda: preset_section("training"))
    """Rounds."""
    evaluation: EvaluationConfig = field(default_factory=lambda: preset_section("evaluation"))
    """What is scored."""
    references: tuple[Reference, ...] = field(default_factory=lambda: tuple(preset_section("references")))
    """Arms to compare with, trained before the method itself; `run` leaves out, and names, those that the backbone or
    the other settings do not allow."""
    runtime: RuntimeConfig = field(default_factory=lambda: preset_section("runtime"))
    """Threads and folders."""

    __no_type_check__: ClassVar[bool] = True  # of the constructor, which takes more than the fields then hold

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            seed: int = 1,
            backbone: Any = ...,
            data: Any = ...,
            features: FeaturesConfig | Mapping[str, Any] = ...,
            partition: Any = ...,
            sampling: Sampler | Mapping[str, Any] | str = ...,
            method: Method | Mapping[str, Any] | str = ...,
            privacy: PrivacyConfig | Mapping[str, Any] = ...,
            training: TrainingConfig | Mapping[str, Any] = ...,
            evaluation: EvaluationConfig | Mapping[str, Any] = ...,
            references: Sequence[Reference | Mapping[str, Any] | str] = ...,
            runtime: RuntimeConfig | Mapping[str, Any] = ...,
        ) -> None: ...

    def __post_init__(self) -> None:
        """Build the sections that were given as tables or names.

        Raises:
            ConfigError: a key is unknown, a value is wrong, or an object's class is not registered.
        """
        convert("seed", self.seed, int)
        for name in (*CHOICES, *SECTIONS.names()):
            value = getattr(self, name)
            if isinstance(value, (str, Mapping)):
                value = section(name, with_sections(preset(), {name: value})[name])
                object.__setattr__(self, name, value)  # still being made
            if name in CHOICES:
                CHOICES[name].name_of(value)
            elif type(value) is not (cls := SECTIONS.get(name)):
                raise ConfigError(f"{name} must be a {cls.__name__} or a table of settings, got {value!r}.")
        if self.privacy.noise_source == "auto":
            resolved = dataclasses.replace(self.privacy, noise_source=self._usual_noise_source)
            object.__setattr__(self, "privacy", resolved)
        if self.privacy.noise_at == "auto":  # a federation says what it takes before
            object.__setattr__(self, "privacy", dataclasses.replace(self.privacy, noise_at="server"))
        object.__setattr__(self, "references", tuple(map(self._reference, range(len(self.references)))))

    @property
    def _usual_noise_source(self) -> Literal["seeded", "secure"]:
        """What "auto" stands for: a data set that does not say that it is public is taken for somebody's own."""
        return "seeded" if getattr(self.data, "is_public", False) else "secure"

    def _reference(self, index: int) -> Reference:
        """Return one arm to compare with, with its method."""
        value: Any = self.references[index]
        path = f"references[{index}]"
        if isinstance(value, str):
            value = {"method": value}
        if isinstance(value, Mapping):
            refuse_unknown(path, value, {f.name for f in dataclasses.fields(Reference)})
            epsilon = convert(f"{path}.epsilon", value.get("epsilon", "none"), float | None)
            value = Reference(method=value.get("method"), epsilon=epsilon)
        method = self.method if value.method is None else value.method
        if isinstance(method, (str, Mapping)):
            method = choose(f"{path}.method", {"name": method} if isinstance(method, str) else to_plain(method))
        METHODS.name_of(method)
        return dataclasses.replace(value, method=method)

    def to_toml(self) -> str:
        """Return the resolved config as TOML; `parse(tomllib.loads(...))` gives it back."""
        return tomli_w.dumps(to_plain(self))

    def to_values(self) -> dict[str, Any]:
        """Return the config as plain values to change: what follows from other sections is left open.

        References that have the run's own method do not name it, and a noise source that is the usual one of these data
        is "auto": other data have their own.
        """
        values: dict[str, Any] = to_plain(self)
        if self.privacy.noise_source == self._usual_noise_source:
            values["privacy"]["noise_source"] = "auto"
        for arm in values["references"]:
            if arm["method"] == values["method"]:
                del arm["method"]
        return values

    def meant(self) -> dict[str, Any]:
        """Return the config as plain values, without settings that mean nothing here and that older versions had not.

        So a run is the same run under every version.
        """
        plain: dict[str, Any] = to_plain(self)
        for name in self.privacy.unused:
            del plain["privacy"][name]
        for each in dataclasses.fields(self.data):
            if each.name in GROUP_SETTINGS and getattr(self.data, each.name) == each.default:
                del plain["data"][each.name]
        return plain

    def identity(self) -> str:
        """SHA-256 of everything but the runtime: equal configs give equal results."""
        plain = self.meant()
        del plain["runtime"]
        return hashlib.sha256(tomli_w.dumps(plain).encode()).hexdigest()
