"""The command that makes many runs from one file."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from hushprompt.cli.console import INTERRUPTED, console, sentence
from hushprompt.jobs import sweep_folder
from hushprompt.jobs.progress import SweepBars
from hushprompt.jobs.sweep_folder import RunState, SweepRun
from hushprompt.reporting.formats import WholeTable
from hushprompt.words import counted


def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.toml", help="Sweep file: base config, axes, rules.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder of the runs; none: runs/NAME.")] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Processes side by side, which share the cores; 0: one a core.")] = 0,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Make the runs on this Ray cluster, such as auto.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override in every run, such as data.root=x.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs and their state only.")] = False,
) -> None:
    """Make every run of a grid that is not done yet; the same command goes on after a kill."""
    from hushprompt.jobs import sweep as sweeps

    if dry_run:
        show_plan(*sweeps.plan_sweep(file, out=out, overrides=set_ or []))
        return
    try:
        with SweepBars(console) as bars:
            runs = sweeps.sweep(file, out=out, jobs=jobs, ray=ray, overrides=set_ or [], observer=bars)
    except KeyboardInterrupt:
        console.print("Stopped. Everything up to the last round is kept; the same command goes on.")
        raise typer.Exit(INTERRUPTED) from None
    show_errors(runs)
    root = runs[0].folder.parent
    console.print(f"  {root / sweep_folder.FILE}", soft_wrap=True)
    console.print(f"  hushprompt compare {root}", soft_wrap=True)
    if any(run.state is RunState.FAILED for run in runs):
        raise typer.Exit(1)


def show_plan(root: Path, runs: Sequence[SweepRun]) -> None:
    """Print all runs and how far they are."""
    table = WholeTable("run", "state", "rounds")
    for run in runs:
        table.add_row(run.folder.name, str(run.state), str(run.planned.config.training.num_rounds))
    console.print(table)
    counts = collections.Counter(run.state for run in runs)
    words = ", ".join(f"{counts[state]} {state}" for state in RunState if counts[state])
    console.print(f"{counted(len(runs), 'run')} in {root}: {words}.", soft_wrap=True)


def show_errors(runs: Sequence[SweepRun]) -> None:
    """Print what failed, once for each reason."""
    by_reason: dict[str, list[str]] = {}
    for run in (run for run in runs if run.error is not None):
        by_reason.setdefault(str(run.error), []).append(run.folder.name)
    for reason, names in by_reason.items():
        sentence(f"{len(names)} failed: {reason}")
        for name in names:
            console.print(f"  {name}", markup=False, soft_wrap=True)
    if by_reason:
        console.print("The same command tries what failed again.")
