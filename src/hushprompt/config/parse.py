"""From TOML and `--set` overrides to a `RunConfig`; a wrong key or value is an error that names its dotted path."""

from __future__ import annotations

import dataclasses
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hushprompt import checks
from hushprompt.config.schema import CHOICES, Reference, RunConfig
from hushprompt.errors import ConfigError
from hushprompt.registry import SECTIONS

if TYPE_CHECKING:
    from hushprompt.methods.base import Method

REMOVED = {"runtime.stack_mb": None, "method.drop_below": 0.0}
"""Settings that config files of earlier versions have, each with the only value that is still read; None: any value."""


def locate(config: Path | None) -> Path:
    """Return the file of a preset's name or of a path; None: the embedded preset."""
    name = config or Path("embedded")
    preset = presets_folder() / f"{name}.toml"
    if not name.exists() and name.suffix == "" and preset.exists():
        return preset
    return name


def presets_folder() -> Path:
    """Return the folder of the package's presets."""
    return Path(str(resources.files("hushprompt") / "config" / "presets"))


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
    values = _without_removed(path, values)
    _refuse_unknown(path, values, {f.name for f in dataclasses.fields(cls)})
    converted = {key: _convert(f"{path}.{key}", value, hints[key]) for key, value in values.items()}
    try:
        return cls(**converted)
    except ConfigError as error:
        raise type(error)(f"In the section {path}: {error}") from error
    except TypeError as error:
        raise ConfigError(f"The section {path} is incomplete: {error}.") from error


def _reference(path: str, values: Any, own_method: Method) -> Reference:
    """Build one reference arm; without a method it takes the run's own."""
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
    """Return `values` with one `a.b=c` applied; a new `name` of a section drops the old choice's fields."""
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
