"""The command that makes tables of many runs."""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hushprompt import checks, files
from hushprompt.cli.console import console
from hushprompt.errors import ConfigError
from hushprompt.evaluation.significance import Test
from hushprompt.reporting import comparison_tables as made
from hushprompt.reporting import formats, grouping, results
from hushprompt.reporting.comparison import Comparison, compare
from hushprompt.reporting.formats import Grid

SUFFIXES = {".md": "markdown", ".tex": "latex", ".csv": "csv"}
TESTS: dict[str, Test] = {"t": "t", "sign-flip": "sign_flip"}
TESTED = ("local", "neighbor", "harmonic_mean")
"""Scores whose differences get tables of their own, if no score is asked for."""


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
        list[str] | None, typer.Option(help=f"With --columns, --against: {', '.join(made.WORDS)}.")
    ] = None,
    test: Annotated[str, typer.Option(help="t (paired over seeds), or sign-flip (exact).")] = "t",
    ignore: Annotated[list[str] | None, typer.Option(help="Setting that is no difference, such as data.root.")] = None,
    format_: Annotated[Format | None, typer.Option("--format", help="None: by the ending of --out.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write; none: print.")] = None,
) -> None:
    """Compare methods and settings over seeds: mean, spread, epsilon, significance."""
    checks.one_of(TESTS, test=test)
    for name in score or ():
        checks.one_of(made.WORDS, score=name)
    chosen = format_ or Format(SUFFIXES.get(out.suffix if out else "", "terminal"))
    arms, notes = results.read(runs)
    comparisons = [
        compare(title, groups, against=against, test=TESTS[test], notes=notes)
        for title, groups in grouping.split(grouping.group(arms, ignore or ()), by or ())
    ]
    if chosen is Format.CSV:
        text = csv_text(comparisons)
    else:
        grids = say_once(itertools.chain.from_iterable(grids_of(each, columns, score) for each in comparisons))
        if chosen is Format.TERMINAL:
            show(grids, out)
            return
        text = "\n".join(map(formats.markdown if chosen is Format.MARKDOWN else formats.latex, grids))
    if out is None:
        console.print(text, markup=False, soft_wrap=True, end="")
    else:
        files.write_text(out, text)
        console.print(f"  {out}", soft_wrap=True)


def grids_of(comparison: Comparison, columns: str | None, scores: Sequence[str] | None) -> list[Grid]:
    """Return the tables of one comparison."""
    if columns is None:
        grids = [made.table(comparison)]
    else:
        grids = [made.pivot(comparison, columns, score) for score in scores or ("local", "neighbor")]
    if comparison.references:
        grids += [made.differences(comparison, score) for score in scores or TESTED]
    return grids


def say_once(grids: Iterable[Grid]) -> list[Grid]:
    """Keep each note under the first table that it belongs to."""
    said: set[str] = set()
    kept = []
    for grid in grids:
        kept.append(dataclasses.replace(grid, notes=tuple(note for note in grid.notes if note not in said)))
        said |= set(grid.notes)
    return kept


def csv_text(comparisons: Sequence[Comparison]) -> str:
    """Return all groups as lines of one CSV file, with a column for whatever any of the tables shows."""
    header: list[str] = []
    lines: list[dict[str, object]] = []
    for comparison in comparisons:
        own, rows = made.flat_rows(comparison, comparison.title)
        header += [name for name in own if name not in header]
        lines += [dict(zip(own, row, strict=True)) for row in rows]
    return formats.comma_separated(header, [[line.get(name, "") for name in header] for line in lines])


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
