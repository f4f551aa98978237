"""Several runs at once: made from one file, and looked at together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hushprompt import files
from hushprompt.api.run import Run
from hushprompt.errors import DataError
from hushprompt.jobs import sweep as sweeps
from hushprompt.jobs.sweep import SweepObserver
from hushprompt.jobs.sweep_folder import RunState
from hushprompt.reporting import page

Runs = Run | str | Path | Sequence[Run | str | Path]
"""A run, run folder, folder of them or packed sweep, or several."""


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
        reasons = "; ".join(f"{run.folder.name}: {run.error}" for run in failed)
        raise DataError(f"{len(failed)} of {len(made)} runs failed: {reasons}.")
    return [Run(run.folder) for run in made]


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
