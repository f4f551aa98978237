"""Several runs at once: made from one file, and looked at together."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType

from hushprompt import checks, files
from hushprompt.api.run import Run
from hushprompt.errors import ConfigError, DataError, files_told
from hushprompt.evaluation.significance import Test
from hushprompt.jobs import sweep as sweeps
from hushprompt.jobs.sweep import SweepObserver
from hushprompt.jobs.sweep_folder import RunState
from hushprompt.reporting import comparison_tables, figures, formats, page
from hushprompt.reporting.comparison import Comparison, of_runs
from hushprompt.reporting.formats import Grid
from hushprompt.reporting.pooling import SCORES, measured
from hushprompt.runs import reader
from hushprompt.words import counted

TESTS: Mapping[str, Test] = {"t": "t", "sign-flip": "sign_flip"}

Runs = Run | str | Path | Sequence[Run | str | Path]
"""A run, run folder, folder of them or packed sweep, or several."""


@files_told()
def sweep(
    file: str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    jobs: int = 0,
    ray: str | None = None,
    overrides: Sequence[str] = (),
    progress: SweepObserver | None = None,
) -> list[Run]:
    """Make every run of a grid that is not done yet; called again after a kill, it goes on.

    Args:
        file: a sweep file, or what it says as plain values: base, settings, axes, rules.
        out: folder of the runs; None: runs/NAME.
        jobs: processes side by side, which share the cores; 0: one a core.
        ray: address of a Ray cluster that makes the runs, such as "auto"; None: this machine.
        overrides: settings of the form "section.key=value" made in every run.
        progress: an observer that is told what happens.

    Returns:
        The runs, in the order of the grid.

    Raises:
        ConfigError: the sweep file is wrong, or a run of it no valid config.
        HushpromptError: some runs failed; the others are done, and the same call tries the failed ones again.
    """
    made = sweeps.sweep(file, out=out, jobs=jobs, ray=ray, overrides=overrides, observer=progress)
    if failed := [run for run in made if run.state is RunState.FAILED]:
        reasons = "; ".join(f"{run.folder.name}: {run.error}".rstrip(".") for run in failed)
        raise DataError(f"{len(failed)} of {counted(len(made), 'run')} failed: {reasons}.")
    return [Run(run.folder) for run in made]


@dataclass(frozen=True, repr=False)
class ComparedRuns:
    """Tables of several runs; they show themselves in a terminal (rich) and in a notebook."""

    groups: Sequence[Comparison]
    """One entry for each value of the settings in `by`."""
    grids: Sequence[Grid]
    """The tables, each with its notes: what epsilon means, and what was tested."""

    def text(self, form: str = "markdown") -> str:
        """Return the tables as "markdown", "latex" or "csv"."""
        checks.one_of(FORMS, form=form)
        return FORMS[form](self)

    @files_told()
    def write(self, path: str | Path) -> Path:
        """Write the tables to a file that ends in .md, .tex or .csv."""
        file = Path(path)
        if file.suffix not in SUFFIXES:
            raise ConfigError(f"{file}: name a file that ends in {', '.join(SUFFIXES)}.")
        files.write_text(file, self.text(SUFFIXES[file.suffix]))
        return file

    def __rich__(self) -> RenderableType:
        return Group(*self.grids)

    def _repr_html_(self) -> str:
        return "".join(grid._repr_html_() for grid in self.grids)

    def __repr__(self) -> str:
        return "\n\n".join("\n".join([formats.plain(grid), *grid.notes]) for grid in self.grids)


SUFFIXES = {".md": "markdown", ".tex": "latex", ".csv": "csv"}
FORMS: Mapping[str, Callable[[ComparedRuns], str]] = {
    "markdown": lambda found: "\n".join(map(formats.markdown, found.grids)),
    "latex": lambda found: "\n".join(map(formats.latex, found.grids)),
    "csv": lambda found: comparison_tables.csv_text(found.groups),
}


@files_told()
def compare(
    runs: Runs,
    *,
    by: Sequence[str] = (),
    against: str | None = None,
    columns: str | None = None,
    scores: Sequence[str] = (),
    tables: Sequence[str] = (),
    test: str = "t",
    ignore: Sequence[str] = (),
) -> ComparedRuns:
    """Compare methods and settings over seeds: mean, spread, epsilon, significance.

    Args:
        runs: a run, run folder, folder of them or packed sweep, or several.
        by: settings that each value of has a table of its own, such as "data".
        against: the arm to test against, such as "promptfl" or "method=dp_fpl,rank=8".
        columns: setting whose values stand side by side, such as "epsilon".
        scores: with `columns` or `against`: local, neighbor, harmonic_mean, worst_client; of answers to questions also
            loss, anls, vqa_accuracy, and neighbor_loss and so on.
        tables: only these tables: "scores", "answers", "local", "local-differences", ...
        test: "t" (paired over seeds) or "sign-flip" (exact).
        ignore: settings that make no difference, such as "data.root".

    Raises:
        ConfigError: there is no such setting, score, test or table.
        DataError: there is no finished run, or a file is damaged.
    """
    checks.several(by=by, scores=scores, tables=tables, ignore=ignore)
    checks.one_of(TESTS, test=test)
    groups = of_runs(paths_of(runs), by=by, against=against, test=TESTS[test], ignore=ignore)
    for score in scores:
        checks.one_of({**SCORES, **measured([each for compared in groups for each in compared.groups])}, score=score)
    grids = comparison_tables.tables_of(groups, columns, scores)
    for table in tables:
        checks.one_of(dict.fromkeys(grid.name for grid in grids), table=table)
    return ComparedRuns(groups, [grid for grid in grids if not tables or grid.name in tables])


@dataclass(frozen=True, repr=False)
class RunFigure:
    """A figure of finished runs, which shows itself in a notebook."""

    svg: str

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"RunFigure of {len(self.svg)} bytes of SVG"


@files_told()
def figure(runs: Runs, out: str | Path | None = None, *, kind: str = "curves") -> RunFigure:
    """Draw a figure of finished runs, from their records alone.

    Args:
        runs: a run, run folder, folder of them or packed sweep, or several.
        out: file to write for a paper: .pdf, .svg or .png; None: none.
        kind: "curves", "budget", "clients", "confusion", "roc", ...

    Returns:
        The figure, which a notebook shows.

    Raises:
        ConfigError: there is no such kind, or the ending of `out` is another.
        DataError: the records of these runs hold nothing to draw.
    """
    checks.one_of(figures.KINDS, kind=kind)
    found = reader.find(paths_of(runs)).runs
    if out is not None:
        figures.figure(found, kind, Path(out))
    with tempfile.TemporaryDirectory() as folder:
        figures.figure(found, kind, Path(folder) / "figure.svg")
        return RunFigure((Path(folder) / "figure.svg").read_text(encoding="utf-8"))


@files_told()
def report(runs: Runs, out: str | Path = "report.html", *, title: str = "") -> Path:
    """Make one self-contained HTML page of finished runs, from their records alone.

    Args:
        runs: a run, run folder, folder of them or packed sweep, or several.
        out: the page to write.
        title: heading of the page; empty: made of data and methods.

    Returns:
        The file.

    Raises:
        DataError: there is no finished run, or `out` is a folder.
    """
    path = Path(out)
    if path.is_dir():
        raise DataError(f"{path} is a folder. Name the page itself, such as --out {path / 'report.html'}.")
    files.write_text(path, page.report(paths_of(runs), title))
    return path


def paths_of(runs: Runs) -> list[Path]:
    """Return the paths of one or several runs."""
    several = [runs] if isinstance(runs, (Run, str, Path)) else runs
    return [Path(run) for run in several]
