"""The command that makes many runs from one file."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column, Table

from hushprompt.cli.console import INTERRUPTED, console
from hushprompt.jobs import processes, sweep_file, sweep_folder
from hushprompt.jobs.estimate import Estimate, kind_of
from hushprompt.jobs.messages import Event
from hushprompt.jobs.sweep_folder import State, SweepRun
from hushprompt.runs import records


def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.toml", help="Sweep file: base config, axes, rules.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder of the runs; none: runs/NAME.")] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Processes side by side, which share the cores; 0: one a core.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override in every run, such as data.root=x.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs and their state only.")] = False,
) -> None:
    """Make every run of a grid that is not done yet; the same command goes on after a kill."""
    root = out or Path("runs") / file.stem
    runs = sweep_folder.place(sweep_file.expand(sweep_file.load(file), set_ or []), root)
    if dry_run:
        show_plan(runs, root)
        return
    root.mkdir(parents=True, exist_ok=True)
    with records.locked(root):
        runs = sweep_folder.place([run.planned for run in runs], root)
        waiting = [run for run in runs if run.state is not State.DONE]
        console.print(f"{len(runs)} runs in {root}, {len(runs) - len(waiting)} done before.", soft_wrap=True)
        errors: dict[str, str] = {}
        if waiting:
            try:
                runs, errors = make(file, root, runs, processes.share(jobs, len(waiting)))
            except KeyboardInterrupt:
                console.print("Stopped. Everything up to the last round is kept; the same command goes on.")
                raise typer.Exit(INTERRUPTED) from None
        sweep_folder.write(root, file, runs, errors)
    show_errors(runs, errors)
    console.print(f"  {root / sweep_folder.FILE}", soft_wrap=True)
    console.print(f"  hushprompt compare {root}", soft_wrap=True)
    if errors:
        raise typer.Exit(1)


def make(
    file: Path, root: Path, runs: list[SweepRun], shares: processes.Shares
) -> tuple[list[SweepRun], dict[str, str]]:
    """Make what is not done, and give the runs as they are then, and the errors by identity."""
    sweep_folder.write(root, file, runs, {})
    with SweepBars(file, root, runs, shares) as bars:
        processes.make([run for run in runs if run.state is not State.DONE], shares, bars)
    return bars.runs, bars.errors


class SweepBars:
    """A bar for the sweep and one for each worker; keeps `sweep.json` up to date."""

    def __init__(self, file: Path, root: Path, runs: list[SweepRun], shares: processes.Shares) -> None:
        """Make the bars; they are drawn inside a `with`."""
        self.runs = runs
        self.errors: dict[str, str] = {}
        self._file, self._root = file, root
        self._num_workers = shares.num_workers
        waiting = [run for run in runs if run.state is not State.DONE]
        self._estimate = Estimate([kind_of(run.planned.config) for run in waiting], shares.num_workers)
        self._progress = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=7)),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="crop")),
            BarColumn(bar_width=None),
            console=console,
            expand=True,
        )
        self._overall = self._progress.add_task("runs", total=len(runs), completed=len(runs) - len(waiting), note="")
        self._workers: dict[int, TaskID] = {}
        self._encoding: dict[str, TaskID] = {}

    def __enter__(self) -> SweepBars:
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing; the workers' bars have nothing more to say."""
        for task in self._workers.values():
            self._progress.remove_task(task)
        self._progress.stop()

    def on_encoding(self, event: Event) -> None:
        """Features are being made."""
        if event.what not in self._encoding:
            self._encoding[event.what] = self._progress.add_task(event.what, total=event.total, note="")
        self._progress.update(self._encoding[event.what], completed=event.done)

    def on_progress(self, worker: int, run: SweepRun, event: Event) -> None:
        """A worker has begun a run, or finished a round of it."""
        if worker not in self._workers:
            self._workers[worker] = self._progress.add_task("", total=1, note="")
        if event.total:
            share = event.done / event.total
            self._estimate.progress(run.planned.name, kind_of(run.planned.config), time.monotonic(), share)
        self._progress.update(
            self._workers[worker], description=f"  {run.planned.name}", completed=event.done, total=event.total or 1
        )
        self._show_left()

    def on_end(self, worker: int, run: SweepRun, event: Event) -> None:
        """A run is done, or has failed."""
        is_done = event.kind == "done"
        self._estimate.end(run.planned.name, kind_of(run.planned.config), time.monotonic(), is_done=is_done)
        if not is_done:
            self.errors[run.planned.identity] = event.what
        state = State.DONE if is_done else State.FAILED
        self.runs = [dataclasses.replace(other, state=state) if other == run else other for other in self.runs]
        sweep_folder.write(self._root, self._file, self.runs, self.errors)
        words = event.what if is_done else f"failed: {event.what}"
        self._progress.console.print(f"{run.planned.name}: {words}", markup=False, soft_wrap=True)
        self._progress.advance(self._overall)
        self._show_left()

    def _show_left(self) -> None:
        """Say how long it will take."""
        left = self._estimate.left(time.monotonic())
        if left is not None:
            self._progress.update(self._overall, note=f"{datetime.timedelta(seconds=round(left))} left")


def show_plan(runs: list[SweepRun], root: Path) -> None:
    """Print all runs and how far they are."""
    table = Table("run", "state", "rounds")
    for run in runs:
        table.add_row(run.folder.name, str(run.state), str(run.planned.config.training.num_rounds))
    console.print(table)
    counts = collections.Counter(run.state for run in runs)
    words = ", ".join(f"{counts[state]} {state}" for state in State if counts[state])
    console.print(f"{len(runs)} runs in {root}: {words}.", soft_wrap=True)


def show_errors(runs: list[SweepRun], errors: dict[str, str]) -> None:
    """Print what failed, once for each reason."""
    by_reason: dict[str, list[str]] = {}
    for run in runs:
        if run.planned.identity in errors:
            by_reason.setdefault(errors[run.planned.identity], []).append(run.folder.name)
    for reason, names in by_reason.items():
        console.print(f"{len(names)} failed: {reason}", markup=False, soft_wrap=True)
        for name in names:
            console.print(f"  {name}", markup=False, soft_wrap=True)
    if errors:
        console.print("The same command tries what failed again.")
