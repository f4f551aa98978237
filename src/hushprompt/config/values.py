"""From plain values, as TOML has them, to dataclasses and back; errors name the dotted path of a wrong key or value."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
import unicodedata
from collections.abc import Mapping, Set
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from hushprompt import checks
from hushprompt.errors import ConfigError
from hushprompt.registry import BACKBONES, DATASETS, METHODS, PARTITIONS, SAMPLERS, SECTIONS, Registry

CHOICES = {
    "backbone": BACKBONES,
    "data": DATASETS,
    "partition": PARTITIONS,
    "sampling": SAMPLERS,
    "method": METHODS,
}
"""Sections that name a registered class, and where it is looked up."""


REMOVED = {"runtime.stack_mb": None, "method.drop_below": 0.0}
"""Settings that config files of earlier versions have, each with the only value that is still read; None: any value."""


def build(cls: type[Any], values: Any, path: str) -> Any:
    """Build the dataclass `cls` from a table; errors name the dotted path of the wrong key."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} must be a table of settings, got {values!r}.")
    hints = _hints(cls)  # type: ignore[arg-type]  # classes are hashable
    values = _without_removed(path, values)
    refuse_unknown(path, values, {f.name for f in dataclasses.fields(cls)})
    converted = {key: convert(f"{path}.{key}", value, hints[key]) for key, value in values.items()}
    try:
        return cls(**converted)
    except ConfigError as error:
        raise type(error)(f"In the section {path}: {error}") from error
    except TypeError as error:
        raise ConfigError(f"The section {path} is incomplete: {error}.") from error


@functools.cache
def _hints(cls: type[Any]) -> Mapping[str, Any]:
    """Return what the fields' annotations mean; made once a class, since a sweep builds each many times."""
    return typing.get_type_hints(cls)


def choose(path: str, values: Any, registry: Registry | None = None) -> Any:
    """Build the registered class that a choice section names; `registry` is where, if the path does not say it."""
    registry = registry or CHOICES[path.rpartition(".")[2]]
    if not isinstance(values, Mapping) or "name" not in values:
        raise ConfigError(
            f'{path} must be a table with a name, such as {{ name = "{registry.names()[0]}" }}, got {values!r}.'
        )
    cls = registry.get(convert(f"{path}.name", values["name"], str))
    # An optimizer table inside a method has a field called name too; the section's own name is not a field.
    return build(cls, {key: value for key, value in values.items() if key != "name"}, path)


def section(name: str, values: Any) -> Any:
    """Build one section of a config: the class that it names, or the one there is."""
    return choose(name, values) if name in CHOICES else build(SECTIONS.get(name), values, name)


def _without_removed(path: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out settings of earlier versions; ConfigError for one that changed results."""
    kept = dict(values)
    for name, neutral in REMOVED.items():
        section, _, key = name.partition(".")
        if path.rpartition(".")[2] == section and key in kept:
            value = kept.pop(key)
            if neutral is not None and value != neutral:
                raise ConfigError(
                    f"{path}.{key} was removed, and {path}.{key} = {value!r} would change the result. Leave it out: "
                    f"results are those of {key} = {neutral!r}."
                )
    return kept


def refuse_unknown(path: str, values: Mapping[str, Any], known: Set[str]) -> None:
    """Raise ConfigError for a key that does not exist, with the nearest one that does."""
    for key in values:
        if key not in known:
            place = f"in the section {path}" if path else "at the top level"
            allowed = ", ".join(sorted(known)) or "none"
            raise ConfigError(f"Unknown key {key!r} {place}; known: {allowed}.{checks.nearest(key, known)}")


def convert(path: str, value: Any, hint: Any) -> Any:
    """Check one TOML value against a type and return it as that type."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:  # a choice inside a section, which builds it itself
        return value
    if origin in (typing.Union, types.UnionType):
        if value == "none" and type(None) in options:
            return None
        (inner,) = [option for option in options if option is not type(None)]
        return convert(path, value, inner)
    if origin is dict:
        entries = convert(path, value, dict).items()
        return {key: convert(f"{path}.{key}", entry, options[1]) for key, entry in entries}
    if origin is tuple:
        checks.several(of=checks.CLASSES_IN_FILE if path == "data.classes" else "", **{path: value})
        return tuple(
            convert(f"{path}[{index}]", entry, options[0]) for index, entry in enumerate(convert(path, value, list))
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
    if isinstance(value, str) and any(unicodedata.category(character) == "Cc" for character in value):
        raise ConfigError(
            f"{path} has a control character, {value!r}: between double quotes a backslash starts an escape, such as "
            "the tab \\t. Write 'C:\\temp' in single quotes, or C:/temp."
        )
    return value


def to_plain(value: Any) -> Any:
    """Turn a config, or a part of one, into what TOML can say; None becomes "none"."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        for registry in CHOICES.values():
            if registry.has(type(value)):
                return {"name": registry.name_of(value), **plain}
        return plain
    if isinstance(value, Mapping):
        return {str(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [to_plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    return "none" if value is None else value
