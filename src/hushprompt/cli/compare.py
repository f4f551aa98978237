"""The command that makes tables of many runs."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

import hushprompt as hp
from hushprompt import files
from hushprompt.cli.console import console, sentence
from hushprompt.errors import ConfigError

if TYPE_CHECKING:
    from hushprompt.reporting.formats import Grid

SUFFIXES = {".md": "markdown", ".tex": "latex", ".csv": "csv"}
SCORES = "local, neighbor, harmonic_mean, worst_client"
MEASURES = "loss, neighbor_loss, anls, neighbor_anls, vqa_accuracy, neighbor_vqa_accuracy"


class Format(enum.StrEnum):
    """Forms of a table."""

    TERMINAL = "terminal"
    MARKDOWN = "markdown"
    LATEX = "latex"
    CSV = "csv"


def compare_runs(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders or sweep folders.")],
    by: Annotated[list[str] | None, typer.Option(help="A table for each value of this setting, such as data.")] = None,
    against: Annotated[str | None, typer.Option(help="Arm to test against: promptfl, or method=dp_fpl,rank=8.")] = None,
    columns: Annotated[str | None, typer.Option(help="Setting whose values stand side by side, as epsilon.")] = None,
    score: Annotated[
        list[str] | None, typer.Option(help=f"With --columns, --against: {SCORES}; of answers {MEASURES}.")
    ] = None,
    table: Annotated[
        list[str] | None, typer.Option(help="Only this table: scores, answers, or local, local-differences and so on.")
    ] = None,
    test: Annotated[str, typer.Option(help="t (paired over seeds), or sign-flip (exact).")] = "t",
    ignore: Annotated[list[str] | None, typer.Option(help="Setting that is no difference, such as data.root.")] = None,
    format_: Annotated[Format | None, typer.Option("--format", help="None: by the ending of --out.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write; none: print.")] = None,
) -> None:
    """Compare methods and settings over seeds: mean, spread, epsilon, significance."""
    chosen = format_ or Format(SUFFIXES.get(out.suffix if out else "", "terminal"))
    found = hp.compare(
        runs,
        by=by or (),
        against=against,
        columns=columns,
        scores=score or (),
        tables=table or (),
        test=test,
        ignore=ignore or (),
    )
    if chosen is Format.TERMINAL:
        show(found.grids, out)
    elif out is None:
        console.print(found.text(chosen), markup=False, soft_wrap=True, end="")
    else:
        files.write_text(out, found.text(chosen))
        console.print(f"  {out}", soft_wrap=True)


def show(grids: Sequence[Grid], out: Path | None) -> None:
    """Print tables and notes, or write what would be printed to a file."""
    if out is not None:
        raise ConfigError(f"--out {out}: name a file that ends in {', '.join(SUFFIXES)}, or give --format.")
    from hushprompt.reporting.formats import MAX_WIDTH

    # A file or a pipe has lines of any length; in a terminal a table that does not fit becomes a list.
    wide = console if console.is_terminal else Console(width=MAX_WIDTH, highlight=False)
    for grid in grids:
        wide.print(dataclasses.replace(grid, notes=()))
        for note in grid.notes:
            sentence(note)
        console.print()
