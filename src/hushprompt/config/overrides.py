"""Settings by dotted keys: to tables and back, merged, and written short for a reader."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from hushprompt.config.values import CHOICES, to_plain
from hushprompt.errors import ConfigError
from hushprompt.user_text import toml_hint


def nested(key: str, value: Any) -> dict[str, Any]:
    """Turn a dotted key into tables.

    >>> nested("method.rank", 8)
    {'method': {'rank': 8}}
    """
    for part in reversed(key.split(".")):
        value = {part: value}
    tables: dict[str, Any] = value
    return tables


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn tables into dotted keys.

    >>> flat({"seed": 1, "method": {"rank": 8}})
    {'seed': 1, 'method.rank': 8}
    """
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return result


def merged(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with nested settings made; a section that gets another `name` starts afresh.

    >>> merged({"method": {"name": "a", "rank": 8}}, {"method": {"rank": 1}})
    {'method': {'name': 'a', 'rank': 1}}
    >>> merged({"method": {"name": "a", "rank": 8}}, {"method": {"name": "b"}})
    {'method': {'name': 'b'}}
    """
    result = dict(values)
    for key, value in settings.items():
        old = result.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            is_other = key in CHOICES and value.get("name", old.get("name")) != old.get("name")
            result[key] = dict(value) if is_other else merged(old, value)
        else:
            result[key] = value
    return result


def with_sections(values: Mapping[str, Any], sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values of a config with some sections changed.

    An object takes a section's place, a name chooses a class, and a table of settings changes the fields it names.

    >>> with_sections({"method": {"name": "a", "rank": 8}, "seed": 1}, {"method": {"rank": 4}, "data": "b", "seed": 2})
    {'method': {'name': 'a', 'rank': 4}, 'seed': 2, 'data': {'name': 'b'}}
    """
    result = dict(values)
    for key, value in sections.items():
        if key in CHOICES and isinstance(value, str):
            value = {"name": value}
        plain = to_plain(value)
        result = merged(result, {key: plain}) if isinstance(value, Mapping) else {**result, key: plain}
    return result


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
    value = _value_of(text.strip())
    if parts[-1] == "name" and len(parts) == 2 and table.get("name") != value:
        table.clear()
    table[parts[-1]] = value
    return result


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return each dotted key by as few of its last parts as tell it from the others.

    >>> short_names(["method.rank", "method.a.learning_rate", "method.b.learning_rate"])
    {'method.rank': 'rank', 'method.a.learning_rate': 'a.learning_rate', 'method.b.learning_rate': 'b.learning_rate'}
    """
    return {
        key: next((tail for tail in _tails(key) if sum(tail in _tails(other) for other in keys) == 1), key)
        for key in keys
    }


def label_of(value: Any) -> str:
    """Write a setting's value as a label.

    >>> [label_of(value) for value in (8.0, 8, float("inf"), True, "svd")]
    ['8', '8', 'inf', 'true', 'svd']
    """
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _tails(key: str) -> list[str]:
    """Return the last part, the last two, and so on."""
    parts = key.split(".")
    return [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]


def _value_of(text: str) -> Any:
    """Read a TOML value; a bare word is a string, and what begins like another TOML value must be one."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        if text[:1] in ('"', "'", "[", "{"):
            hint = toml_hint(f"value = {text}") or " Texts in it need quotes."
            raise ConfigError(f"--set ...={text} is not a TOML value ({error}).{hint}") from error
        return text
