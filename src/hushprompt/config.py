"""One frozen RunConfig: TOML in, `--set` overrides in, resolved TOML out.

A section is the dataclass that uses it. Sections that offer a choice (`backbone`, `data`, `partition`, `sampling`,
`method`) name a registered class by `name`; the other keys are its fields.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tomli_w

from hushprompt import checks
from hushprompt.errors import ConfigError, PrivacyError
from hushprompt.registry import BACKBONES, DATASETS, METHODS, PARTITIONS, SAMPLERS, SECTIONS

if TYPE_CHECKING:
    from hushprompt.backbones.cache import FeaturesConfig
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
        """Give how often a row of `num_rounds` rounds is scored at most: one that is not trained, once.

        A row that is stopped early is scored where it stops, in the place of a later round.
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
    stack_mb: int = 0
    """Memory in MB for the passes of clients who go through the text tower together, stacked on one more axis; as many
    clients of a round are stacked as fit, on a CPU in num_threads stacks at once. 0: every client by itself, the
    fastest on a CPU but for small batches of one shared context. Changes results by rounding alone; stacked, last bits
    depend on num_threads. For runs and sweeps: clients of an audit, or on machines of their own, go by themselves."""
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
        checks.non_negative(num_threads=self.num_threads, memory_mb=self.memory_mb, stack_mb=self.stack_mb)

    @property
    def cache_path(self) -> Path:
        """The cache folder as a path."""
        if self.cache_dir:
            return Path(self.cache_dir).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hushprompt"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One more row of the table: another method, or another budget, everything else the same."""

    method: Method
    """Method of the row; left out in TOML: the run's own."""
    epsilon: float | None = None
    """Target epsilon of the row; left out in TOML: the run's own privacy section."""


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
    """Rows to compare with, trained before the method itself."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """Threads and folders."""

    def to_toml(self) -> str:
        """Give the resolved config as TOML; `parse(tomllib.loads(...))` gives it back."""
        return tomli_w.dumps(_to_plain(self))

    def identity(self) -> str:
        """SHA-256 of everything but the runtime: equal configs give equal results."""
        plain = _to_plain(self)
        del plain["runtime"]
        return hashlib.sha256(tomli_w.dumps(plain).encode()).hexdigest()


def locate(config: Path | None) -> Path:
    """Give the file of a preset's name or of a path; None: the embedded preset."""
    name = config or Path("embedded")
    preset = presets_folder() / f"{name}.toml"
    if not name.exists() and name.suffix == "" and preset.exists():
        return preset
    return name


def presets_folder() -> Path:
    """Give the folder of the package's presets."""
    return Path(str(resources.files("hushprompt") / "presets"))


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a TOML file and apply overrides of the form `section.key=value`.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown, or a value is wrong.
    """
    values = read(path)
    for text in overrides:
        values = override(values, text)
    return parse(values)


def read(path: Path) -> dict[str, Any]:
    """Read a TOML file as plain values.

    Raises:
        ConfigError: the file is missing or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The config file {path} cannot be read ({error.strerror}). Check the path.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The config file {path} is not valid TOML: {error}.") from error


def parse(values: Mapping[str, Any]) -> RunConfig:
    """Build a RunConfig from nested plain values; missing sections and fields take their defaults."""
    known = {f.name for f in dataclasses.fields(RunConfig)}
    _refuse_unknown("", values, known)
    sections: dict[str, Any] = {"seed": _convert("seed", values.get("seed", 1), int)}
    for name, registry in CHOICES.items():
        if name not in values:
            raise ConfigError(
                f'The section {name} is missing. Name one: {name} = {{ name = "{registry.names()[0]}" }}.'
            )
        sections[name] = choose(name, values[name])
    for name in SECTIONS.names():
        sections[name] = build(SECTIONS.get(name), values.get(name, {}), name)
    references = _convert("references", values.get("references", []), list)
    sections["references"] = tuple(
        _reference(f"references[{index}]", entry, sections["method"]) for index, entry in enumerate(references)
    )
    return RunConfig(**sections)


def build(cls: type[Any], values: Any, path: str) -> Any:
    """Build the dataclass `cls` from a table; errors name the dotted path of the wrong key."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} must be a table of settings, got {values!r}.")
    hints = typing.get_type_hints(cls)
    _refuse_unknown(path, values, {f.name for f in dataclasses.fields(cls)})
    converted = {key: _convert(f"{path}.{key}", value, hints[key]) for key, value in values.items()}
    try:
        return cls(**converted)
    except ConfigError as error:
        raise type(error)(f"In the section {path}: {error}") from error
    except TypeError as error:
        raise ConfigError(f"The section {path} is incomplete: {error}.") from error


def _reference(path: str, values: Any, own_method: Method) -> Reference:
    """Build one reference row; without a method it takes the run's own."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} must be a table of settings, got {values!r}.")
    _refuse_unknown(path, values, {f.name for f in dataclasses.fields(Reference)})
    method = choose(f"{path}.method", values["method"]) if "method" in values else own_method
    epsilon = _convert(f"{path}.epsilon", values.get("epsilon", "none"), float | None)
    if epsilon is not None:
        checks.positive(**{f"{path}.epsilon": epsilon})
    return Reference(method=method, epsilon=epsilon)


def choose(path: str, values: Any) -> Any:
    """Build the registered class that a choice section names."""
    registry = CHOICES[path.rpartition(".")[2]]
    if not isinstance(values, Mapping) or "name" not in values:
        raise ConfigError(
            f'{path} must be a table with a name, such as {{ name = "{registry.names()[0]}" }}, got {values!r}.'
        )
    cls = registry.get(_convert(f"{path}.name", values["name"], str))
    # An optimizer table inside a method has a field called name too; the section's own name is not a field.
    return build(cls, {key: value for key, value in values.items() if key != "name"}, path)


def _refuse_unknown(path: str, values: Mapping[str, Any], known: set[str]) -> None:
    """Raise ConfigError for a key that does not exist, with the nearest one that does."""
    for key in values:
        if key not in known:
            place = f"in the section {path}" if path else "at the top level"
            allowed = ", ".join(sorted(known)) or "none"
            raise ConfigError(f"Unknown key {key!r} {place}; known: {allowed}.{checks.nearest(key, known)}")


def _convert(path: str, value: Any, hint: Any) -> Any:
    """Check one TOML value against a type and give it as that type."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value == "none" and type(None) in options:
            return None
        (inner,) = [option for option in options if option is not type(None)]
        return _convert(path, value, inner)
    if origin is tuple:
        return tuple(
            _convert(f"{path}[{index}]", entry, options[0]) for index, entry in enumerate(_convert(path, value, list))
        )
    if origin is Literal:
        if value not in options:
            checks.one_of([str(option) for option in options], **{path: str(value)})
        return value
    if dataclasses.is_dataclass(hint):
        return build(typing.cast("type[Any]", hint), value, path)
    if isinstance(hint, type) and issubclass(hint, Enum):
        checks.one_of([str(member.value) for member in hint], **{path: str(value)})
        return hint(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{path} must be of type {hint.__name__}, got {value!r} ({type(value).__name__}).")
    return value


def override(values: Mapping[str, Any], setting: str) -> dict[str, Any]:
    """Give `values` with one `a.b=c` applied; a new `name` of a section drops the old choice's fields."""
    key, equals, text = setting.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(re.fullmatch(r"[A-Za-z_]\w*", part) for part in parts):
        raise ConfigError(f"--set takes section.key=value, got {setting!r}. Example: --set privacy.epsilon=4")
    result = dict(values)
    table = result
    for depth, part in enumerate(parts[:-1]):
        inner = table.get(part, {})
        if not isinstance(inner, Mapping):
            raise ConfigError(f"--set {setting}: {'.'.join(parts[: depth + 1])} is not a table.")
        table[part] = dict(inner)
        table = table[part]
    value = _parse_value(text.strip())
    if parts[-1] == "name" and len(parts) == 2 and table.get("name") != value:
        table.clear()
    table[parts[-1]] = value
    return result


def _parse_value(text: str) -> Any:
    """Read a TOML value; a bare word is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _to_plain(value: Any) -> Any:
    """Turn a config into what TOML can say; None becomes "none"."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {f.name: _to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        for registry in CHOICES.values():
            if type(value) in registry.classes():
                return {"name": registry.name_of(value), **plain}
        return plain
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [_to_plain(entry) for entry in value]
    return "none" if value is None else value
