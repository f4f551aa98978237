"""The command that makes tables of many runs."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hushprompt import checks, files
from hushprompt.cli.console import console
from hushprompt.errors import ConfigError
from hushprompt.evaluation.significance import Test
from hushprompt.reporting import comparison_tables as made
from hushprompt.reporting import formats
from hushprompt.reporting.comparison import of_runs
from hushprompt.reporting.formats import Grid
from hushprompt.reporting.pooling import SCORES

SUFFIXES = {".md": "markdown", ".tex": "latex", ".csv": "csv"}
TESTS: dict[str, Test] = {"t": "t", "sign-flip": "sign_flip"}


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
    score: Annotated[list[str] | None, typer.Option(help=f"With --columns, --against: {', '.join(SCORES)}.")] = None,
    table: Annotated[
        list[str] | None, typer.Option(help="Only this table: scores, or local, local-differences and so on.")
    ] = None,
    test: Annotated[str, typer.Option(help="t (paired over seeds), or sign-flip (exact).")] = "t",
    ignore: Annotated[list[str] | None, typer.Option(help="Setting that is no difference, such as data.root.")] = None,
    format_: Annotated[Format | None, typer.Option("--format", help="None: by the ending of --out.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write; none: print.")] = None,
) -> None:
    """Compare methods and settings over seeds: mean, spread, epsilon, significance."""
    checks.one_of(TESTS, test=test)
    for name in score or ():
        checks.one_of(SCORES, score=name)
    chosen = format_ or Format(SUFFIXES.get(out.suffix if out else "", "terminal"))
    comparisons = of_runs(runs, by=by or (), against=against, test=TESTS[test], ignore=ignore or ())
    if chosen is Format.CSV:
        text = made.csv_text(comparisons)
    else:
        grids = made.tables_of(comparisons, columns, score or ())
        if table:
            names = list(dict.fromkeys(grid.name for grid in grids))
            for name in table:
                checks.one_of(names, table=name)
            grids = [grid for grid in grids if grid.name in table]
        if chosen is Format.TERMINAL:
            show(grids, out)
            return
        text = "\n".join(map(formats.markdown if chosen is Format.MARKDOWN else formats.latex, grids))
    if out is None:
        console.print(text, markup=False, soft_wrap=True, end="")
    else:
        files.write_text(out, text)
        console.print(f"  {out}", soft_wrap=True)


def show(grids: Sequence[Grid], out: Path | None) -> None:
    """Print tables and notes, or write what would be printed to a file."""
    if out is not None:
        raise ConfigError(f"--out {out}: name a file that ends in {', '.join(SUFFIXES)}, or give --format.")
    # A file or a pipe has lines of any length; in a terminal a table that does not fit becomes a list.
    wide = console if console.is_terminal else Console(width=formats.MAX_WIDTH, highlight=False)
    for grid in grids:
        wide.print(dataclasses.replace(grid, notes=()))
        for note in grid.notes:
            console.print(note, markup=False, soft_wrap=True)
        console.print()
