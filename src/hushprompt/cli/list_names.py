"""The command that lists what a config can name.

Lists are made of the index of our own classes and the names of other packages' entry points; nothing is imported but
one class that is asked for by name.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.markup import escape

from hushprompt.cli.console import console, presets
from hushprompt.errors import ConfigError
from hushprompt.registry import BACKBONES, DATASETS, METHODS, PARTITIONS, SAMPLERS, Registry
from hushprompt.reporting.formats import WholeTable

LISTS = {
    "methods": METHODS,
    "datasets": DATASETS,
    "backbones": BACKBONES,
    "partitions": PARTITIONS,
    "samplers": SAMPLERS,
}


def complete(incomplete: str) -> list[str]:
    """Return the lists and names that begin so."""
    names = (name for registry in LISTS.values() for name in registry.names())
    return [name for name in (*LISTS, "presets", *names) if name.startswith(incomplete)]


def list_names(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[LIST|NAME]",
            help="methods, datasets, backbones, partitions, samplers or presets; or one name, with its settings.",
            autocompletion=complete,
        ),
    ] = None,
) -> None:
    """List what can be named in a config."""
    if what is None:
        show_all()
    elif what == "presets":
        for name in presets():
            console.print(name)
    elif what in LISTS:
        show_list(LISTS[what])
    else:
        show_one(what)


def show_all() -> None:
    """Print every list in short."""
    table = WholeTable("list", "names")
    for what, registry in LISTS.items():
        table.add_row(what, ", ".join(registry.names()))
    table.add_row("presets", ", ".join(presets()))
    console.print(table)


def show_list(registry: Registry) -> None:
    """Print one list."""
    table = WholeTable("name", "what it is", "settings")
    for entry in registry.entries():
        title = entry.title or f"from the package {entry.package}; see: hushprompt list {entry.name}"
        table.add_row(entry.name, escape(title), ", ".join(entry.settings))
    console.print(table)


def show_one(name: str) -> None:
    """Print what is known of a name in every list that has it."""
    found = [registry for registry in LISTS.values() if name in registry.names()]
    if not found:
        raise ConfigError(f"There is no list of {name!r}; known: {', '.join([*LISTS, 'presets'])}; nor is it a name.")
    for registry in found:
        describe(name, registry.kind, registry.get(name))


def describe(name: str, kind: str, cls: type[Any]) -> None:
    """Print a class's docstring, and its settings with their defaults and meanings."""
    console.print(f"{kind} {name}", style="bold", markup=False)
    for paragraph in (inspect.getdoc(cls) or "").split("\n\n"):
        console.print(" ".join(paragraph.split()), markup=False)
    lines = list(setting_lines(cls))
    if not lines:
        console.print("It has no settings.")
        return
    table = WholeTable("setting", "default", "meaning")
    for line in lines:
        table.add_row(*map(escape, line))
    console.print(table)


def setting_lines(cls: type[Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield key, default and meaning of each setting, those of a section inside it with dots."""
    from hushprompt.config.documentation import settings_of

    for setting in settings_of(cls):
        if dataclasses.is_dataclass(setting.default):
            yield prefix + setting.name, "", setting.meaning
            yield from setting_lines(type(setting.default), f"{prefix}{setting.name}.")
        else:
            yield prefix + setting.name, _text(setting.default), setting.meaning


def _text(default: Any) -> str:
    """Write a default as a config file has it."""
    if default is dataclasses.MISSING:
        return "must be set"
    return "none" if default is None else json.dumps(default)
