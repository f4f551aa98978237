"""The command that lists what a config can name."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from hushprompt.cli.console import console
from hushprompt.errors import ConfigError
from hushprompt.registry import BACKBONES, DATASETS, METHODS, PARTITIONS, SAMPLERS

LISTS = {
    "methods": METHODS,
    "datasets": DATASETS,
    "backbones": BACKBONES,
    "partitions": PARTITIONS,
    "samplers": SAMPLERS,
}


def list_names(
    what: Annotated[str, typer.Argument(help="methods, datasets, backbones, partitions, samplers, presets")],
) -> None:
    """List what can be named in a config."""
    from hushprompt.config import parse as configs

    if what == "presets":
        for path in sorted(configs.presets_folder().glob("*.toml")):
            console.print(path.stem)
        return
    if what not in LISTS:
        raise ConfigError(f"There is no list of {what!r}; known: {', '.join([*LISTS, 'presets'])}.")
    table = Table("name", "what it is", "settings")
    for entry in LISTS[what].entries():
        title = entry.title or f"from the package {entry.package}; see: hushprompt list {entry.name}"
        table.add_row(entry.name, title, ", ".join(entry.settings))
    console.print(table)
