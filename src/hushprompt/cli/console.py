"""What all commands share: the console that they print on, their exit statuses, what a shell completes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console(highlight=False)
INTERRUPTED = 130
"""Exit status of a command that was stopped by Ctrl-C, as shells give it."""


def sentence(text: str, style: str = "") -> None:
    """Print a sentence: broken between words in a terminal, one line in a pipe or a file."""
    console.print(text, style=style or None, markup=False, soft_wrap=not console.is_terminal)


def presets() -> list[str]:
    """Return the names of the presets, sorted."""
    from hushprompt.config.presets import presets_folder

    return sorted(path.stem for path in presets_folder().glob("*.toml"))


def complete_config(incomplete: str) -> list[str]:
    """Return the presets, TOML files and folders that begin so."""
    paths = sorted(Path().glob(f"{incomplete}*")) if incomplete not in ("..", "/") else []
    files = [str(path) for path in paths if path.suffix == ".toml" or path.is_dir()]
    return [*(name for name in presets() if name.startswith(incomplete)), *files]


ConfigFile = Annotated[
    Path | None,
    typer.Argument(help="TOML file or preset name; none: the embedded preset.", autocompletion=complete_config),
]
Whose = Annotated[str | None, typer.Option(help="Whose prompt, by name or number; none: the global one.")]
Tower = Annotated[
    str | None, typer.Option(help="TOML file with a backbone section, or a name; none: what the prompt says.")
]
