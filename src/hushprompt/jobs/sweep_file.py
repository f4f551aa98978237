"""A sweep file and the runs it stands for.

A sweep file names a base config and axes; its runs are the grid over the axes, changed by rules. Every run is an
ordinary config. The format, with examples: docs/sweeps.md.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from hushprompt import checks
from hushprompt.config import parse as configs
from hushprompt.config.overrides import label_of, merged, nested, short_names
from hushprompt.config.schema import RunConfig
from hushprompt.config.values import refuse_unknown
from hushprompt.errors import ConfigError
from hushprompt.user_text import read_text

KEYS = {"base", "settings", "axes", "rules"}
"""What may stand at the top of a sweep file."""
RULE_KEYS = {"where", "unless", "without", "set", "skip"}
"""What may stand in a rule."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One place on an axis."""

    label: str
    """How rules and folder names call it."""
    settings: Mapping[str, Any]
    """Nested settings that it makes."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One thing that a sweep varies: a setting, or bundles of settings with a label each."""

    name: str
    """The dotted key of a setting, or any name of an axis of bundles."""
    choices: tuple[Choice, ...]
    is_bundle: bool

    @property
    def labels(self) -> list[str]:
        """The labels of all choices."""
        return [choice.label for choice in self.choices]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What is special about a part of the grid."""

    where: Mapping[str, tuple[str, ...]]
    """Labels by axis; the rule holds where a point has one of them on every axis named."""
    unless: Mapping[str, tuple[str, ...]]
    """Labels by axis; the rule does not hold where a point has one of them on every axis named."""
    without: tuple[str, ...]
    """Axes that do not vary here: the setting stays the base's."""
    settings: Mapping[str, Any]
    """Nested settings made here, after those of the axes."""
    skip: bool
    """True leaves the points out."""

    def holds(self, point: Mapping[str, Choice]) -> bool:
        """Tell whether the rule is about this point."""
        return _matches(self.where, point) and not (self.unless and _matches(self.unless, point))


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep file, read and checked."""

    name: str
    """The file's stem."""
    content: str
    """The file's text, for `sweep.json`."""
    base: Mapping[str, Any]
    """Plain values of the base config with the settings of all runs; without references, unless the sweep sets some."""
    axes: tuple[Axis, ...]
    rules: tuple[Rule, ...]


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a sweep."""

    name: str
    """Readable name, unique in its sweep. Its identity, not its name, says what it is."""
    labels: Mapping[str, str]
    """Where it lies: a label for every axis that varies there."""
    config: RunConfig
    identity: str


def load(file: Path | str | Mapping[str, Any]) -> Sweep:
    """Read a sweep file, or what one says as plain values; there `base` may also be a RunConfig or its values.

    Raises:
        ConfigError: it, or its base, is missing or no TOML, or a key, an axis or a label is unknown.
    """
    if isinstance(file, Mapping):
        values, name, folder = _plain_base(file), "sweep", Path()
    else:
        path = Path(file)
        values, name, folder = configs.read(path), path.stem, path.parent
    what = f"The sweep file {file}" if isinstance(file, (str, Path)) else "The sweep"
    refuse_unknown("", values, KEYS)
    base = values.get("base")
    if not isinstance(base, (str, Mapping)) or not isinstance(values.get("axes"), Mapping):
        raise ConfigError(f'{what} needs base = "config or preset" and a table [axes].')
    base = base if isinstance(base, Mapping) else configs.read(_base(folder, base))
    base = merged({**base, "references": []}, _settings("settings", values.get("settings", {})))
    axes = tuple(_axis(name, choices) for name, choices in values["axes"].items())
    rules = values.get("rules", [])
    if not isinstance(rules, list):
        raise ConfigError(f"rules must be a list of tables, [[rules]], got {rules!r}.")
    by_name = {axis.name: axis for axis in axes}
    return Sweep(
        name=name,
        content=tomli_w.dumps(values) if isinstance(file, Mapping) else read_text(Path(file)),
        base=base,
        axes=axes,
        rules=tuple(_rule(f"rules[{index}]", rule, by_name) for index, rule in enumerate(rules)),
    )


def _plain_base(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a sweep's values with a base that TOML can hold."""
    base = values.get("base")
    return {**values, "base": tomllib.loads(base.to_toml())} if isinstance(base, RunConfig) else values


def expand(sweep: Sweep, overrides: Sequence[str] = ()) -> list[PlannedRun]:
    """Return the runs of a sweep in the order of its axes; points whose config is the same are one run.

    Args:
        sweep: what to expand.
        overrides: settings of the form `section.key=value` made in every run, after all others.

    Raises:
        ConfigError: a point is no valid config, an override would undo an axis, or there is no run.
    """
    checks.several(overrides=overrides)
    _refuse_undoing(sweep, overrides)
    runs: dict[str, PlannedRun] = {}
    taken: set[str] = set()
    for point in points(sweep):
        labels = {name: choice.label for name, choice in point.items()}
        name = run_name(sweep, labels)
        try:
            config = configure(sweep, point, overrides)
        except ConfigError as error:
            raise type(error)(f"In the run {name}: {error}") from error
        identity = config.identity()
        if identity in runs:
            continue
        unique = f"{name}-{identity[:8]}" if name in taken else name
        taken.add(unique)
        runs[identity] = PlannedRun(name=unique, labels=labels, config=config, identity=identity)
    if not runs:
        raise ConfigError(f"The sweep {sweep.name} has no run: an axis is empty, or its rules skip everything.")
    return list(runs.values())


def points(sweep: Sweep) -> Iterator[dict[str, Choice]]:
    """Return the grid's points, a choice for every axis that varies there."""
    for choices in itertools.product(*(axis.choices for axis in sweep.axes)):
        point = {axis.name: choice for axis, choice in zip(sweep.axes, choices, strict=True)}
        skip = False
        for rule in sweep.rules:
            if rule.holds(point):
                skip = skip or rule.skip
                point = {name: choice for name, choice in point.items() if name not in rule.without}
        if not skip:
            yield point


def configure(sweep: Sweep, point: Mapping[str, Choice], overrides: Sequence[str] = ()) -> RunConfig:
    """Return a point's config: the base, then its bundles, its single settings, the rules, the overrides."""
    values: Mapping[str, Any] = sweep.base
    for axis in sorted(sweep.axes, key=lambda axis: not axis.is_bundle):
        if axis.name in point:
            values = merged(values, point[axis.name].settings)
    for rule in sweep.rules:
        if rule.holds(point):
            values = merged(values, rule.settings)
    for text in overrides:
        values = configs.override(values, text)
    return configs.parse(values)


def run_name(sweep: Sweep, labels: Mapping[str, str]) -> str:
    """Name a run for a reader: labels of bundles, settings with their values, the seed last."""
    words = short_names([axis.name for axis in sweep.axes])
    ordered = sorted(sweep.axes, key=lambda axis: (axis.name == "seed", not axis.is_bundle))
    parts = [
        labels[axis.name] if axis.is_bundle else words[axis.name] + labels[axis.name]
        for axis in ordered
        if axis.name in labels
    ]
    return re.sub(r"[^\w.+-]+", "_", "-".join(parts)).strip(".") or "run"


def _base(folder: Path, base: str) -> Path:
    """Return the base config's file: beside the sweep file, or a preset."""
    beside = folder / base
    return beside if beside.exists() else configs.locate(Path(base))


def _axis(name: str, choices: Any) -> Axis:
    """Read one entry of the table [axes]."""
    if isinstance(choices, list) and choices:
        made = [Choice(label=label_of(value), settings=nested(name, value)) for value in choices]
    elif isinstance(choices, Mapping) and choices and all(isinstance(value, Mapping) for value in choices.values()):
        made = [
            Choice(label=label, settings=_settings(f"axes.{name}.{label}", table)) for label, table in choices.items()
        ]
    else:
        raise ConfigError(
            f'The axis {name} must be a list of values of one setting, as in "privacy.epsilon" = [2.0, 8.0] with the '
            f"quotes, or a table of labels and their settings; got {choices!r}."
        )
    axis = Axis(name=name, choices=tuple(made), is_bundle=isinstance(choices, Mapping))
    if len(set(axis.labels)) < len(axis.labels):
        raise ConfigError(f"The axis {name} has a value twice: {', '.join(axis.labels)}.")
    return axis


def _rule(path: str, values: Any, axes: Mapping[str, Axis]) -> Rule:
    """Read one of [[rules]]."""
    values = _table(path, values)
    refuse_unknown(path, values, RULE_KEYS)
    if not {"without", "set", "skip"} & set(values):
        raise ConfigError(f"{path} does nothing: give it without = [axes], set = {{ settings }}, or skip = true.")
    without = values.get("without", [])
    if not isinstance(without, list) or not isinstance(values.get("skip", False), bool):
        raise ConfigError(f"{path}: without is a list of axes, and skip is true or false.")
    for name in without:
        _find_axis(f"{path}.without", name, axes)
    return Rule(
        where=_condition(f"{path}.where", values.get("where", {}), axes),
        unless=_condition(f"{path}.unless", values.get("unless", {}), axes),
        without=tuple(without),
        settings=_settings(f"{path}.set", values.get("set", {})),
        skip=values.get("skip", False),
    )


def _condition(path: str, values: Any, axes: Mapping[str, Axis]) -> dict[str, tuple[str, ...]]:
    """Read the labels by axis of a rule."""
    condition = {}
    for name, wanted in _table(path, values).items():
        known = _find_axis(path, name, axes).labels
        labels = tuple(label_of(value) for value in (wanted if isinstance(wanted, list) else [wanted]))
        for label in labels:
            checks.one_of(known, **{f"{path}.{name}": label})
        condition[name] = labels
    return condition


def _find_axis(path: str, name: Any, axes: Mapping[str, Axis]) -> Axis:
    if name not in axes:
        raise ConfigError(
            f"{path} names {name!r}, which is no axis; known: {', '.join(axes)}.{checks.nearest(str(name), axes)}"
        )
    return axes[name]


def _matches(condition: Mapping[str, tuple[str, ...]], point: Mapping[str, Choice]) -> bool:
    """Tell whether a point has one of the labels on every axis named."""
    return all(name in point and point[name].label in labels for name, labels in condition.items())


def _settings(path: str, values: Any) -> dict[str, Any]:
    """Return nested settings of a table whose keys may be dotted."""
    result: dict[str, Any] = {}
    for key, value in _table(path, values).items():
        inner = _settings(f"{path}.{key}", value) if isinstance(value, Mapping) else value
        result = merged(result, nested(key, inner))
    return result


def _table(path: str, values: Any) -> Mapping[str, Any]:
    """Return a table, or refuse what is none."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} must be a table of settings, got {values!r}.")
    return values


def _refuse_undoing(sweep: Sweep, overrides: Sequence[str]) -> None:
    """Raise ConfigError where an override would set what an axis varies."""
    for text in overrides:
        parts = text.partition("=")[0].strip().split(".")
        for axis in sweep.axes:
            made = [_made(choice.settings, parts) for choice in axis.choices]
            if any(value != made[0] for value in made):
                raise ConfigError(
                    f"--set {text} would undo the axis {axis.name}, which varies that. Change the sweep file instead."
                )


def _made(settings: Any, parts: Sequence[str]) -> Any:
    """Return what nested settings make of one setting; None where they leave it alone."""
    for part in parts:
        if not isinstance(settings, Mapping) or part not in settings:
            return None
        settings = settings[part]
    return settings
