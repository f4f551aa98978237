"""From TOML and `--set` overrides to a `RunConfig`; a wrong key or value is an error that names its dotted path."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hushprompt import checks
from hushprompt.config.overrides import override as override
from hushprompt.config.overrides import with_sections
from hushprompt.config.presets import locate as locate
from hushprompt.config.presets import presets_folder as presets_folder
from hushprompt.config.presets import read as read
from hushprompt.config.schema import RunConfig
from hushprompt.config.values import CHOICES, convert, refuse_unknown, section
from hushprompt.config.values import build as build
from hushprompt.config.values import choose as choose
from hushprompt.errors import ConfigError
from hushprompt.registry import SECTIONS

EVERYTHING = {"name": "disjoint", "steps_per_round": 1}
"""What stands for `sampling` where no method draws batches: all examples at once."""


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a TOML file and apply overrides of the form `section.key=value`.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown, or a value is wrong.
    """
    checks.several(overrides=overrides)
    values = read(path)
    for text in overrides:
        values = override(values, text)
    return parse(values)


def load_stored(folder: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the config of a run folder, of this version or an older one, and apply overrides.

    Raises:
        ConfigError: as for `load`.
    """
    checks.several(overrides=overrides)
    values = as_stored(read(folder / "config.toml"))
    for text in overrides:
        values = override(values, text)
    return parse(values)


def as_stored(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values of a run folder's config as they were meant.

    A run's config is resolved, so one without a noise source is from a time when all noise came from the seed, and one
    without `rounding` did not account for it.
    """
    return {**values, "privacy": {"noise_source": "seeded", "rounding": 0.0, **values.get("privacy", {})}}


def parse(values: Mapping[str, Any]) -> RunConfig:
    """Build a RunConfig from nested plain values.

    A file stands for itself: sections and fields that it leaves out take the defaults of their classes, not those of
    the preset, and without `references` there are none. `sampling` may be left out where no method draws batches.

    Raises:
        ConfigError: a section is missing, a key is unknown, or a value is wrong.
    """
    refuse_unknown("", values, {f.name for f in dataclasses.fields(RunConfig)})
    whole = {"sampling": EVERYTHING, **values}
    for name in CHOICES:
        if name not in whole:
            raise _missing(name)
    config = RunConfig(
        seed=values.get("seed", 1),
        references=convert("references", values.get("references", []), list),
        **{name: section(name, whole.get(name, {})) for name in (*CHOICES, *SECTIONS.names())},
    )
    methods = (config.method, *(one.method for one in config.references))
    if "sampling" not in values and any(map(_draws_batches, methods)):
        raise _missing("sampling")
    return config


def _missing(name: str) -> ConfigError:
    """Return the error of a section that must be given."""
    return ConfigError(f'The section {name} is missing. Name one: {name} = {{ name = "{CHOICES[name].names()[0]}" }}.')


def _draws_batches(method: Any) -> bool:
    """Whether a method trains on batches: not on nothing, and not by one release of every example (`OneRelease`)."""
    return bool(method.channels) and not hasattr(method, "of_task")


def resolve(config: RunConfig | Mapping[str, Any] | str | Path | None, sections: Mapping[str, Any]) -> RunConfig:
    """Return a config with some sections changed.

    Args:
        config: a config, its plain values, a TOML file, or the name of a preset; None: the embedded preset.
        sections: by name, as `RunConfig` takes them. A table changes settings of `config`, and a reference that has
            its method follows another one.

    Raises:
        ConfigError: a file is missing or no TOML, a key is unknown, or a value is wrong.
    """
    if isinstance(config, RunConfig):
        if not sections:
            return config
        values = config.to_values()
    else:
        values = dict(config) if isinstance(config, Mapping) else read(locate(None if config is None else Path(config)))
    refuse_unknown("", sections, {f.name for f in dataclasses.fields(RunConfig)})
    return parse(with_sections(values, sections))
