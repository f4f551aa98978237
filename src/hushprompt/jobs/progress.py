"""Progress bars of a sweep, in a terminal or a notebook."""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column

from hushprompt.jobs.estimate import Estimate, kind_of
from hushprompt.jobs.sweep_folder import RunState, SweepRun
from hushprompt.words import counted


class SweepBars:
    """A bar for the sweep and one for each worker, and a line for each run that ends; drawn inside a `with`."""

    def __init__(self, console: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", table_column=Column(overflow="fold")),  # breaks first
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=7)),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            console=console,
            expand=True,
        )
        self._overall: TaskID | None = None
        self._estimate = Estimate([], 1)
        self._bars: dict[str, TaskID] = {}
        """By worker, or by what is encoded."""
        self._workers: set[str] = set()

    def __enter__(self) -> SweepBars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing; the workers' bars have nothing more to say."""
        for worker in self._workers:
            self._progress.remove_task(self._bars[worker])
        self._progress.stop()

    def on_start(self, runs: Sequence[SweepRun], num_workers: int) -> None:
        """Runs that are not done are about to be made."""
        waiting = [run for run in runs if run.state is not RunState.DONE]
        num_done = len(runs) - len(waiting)
        folder = runs[0].folder.parent
        self._progress.console.print(
            f"{counted(len(runs), 'run')} in {folder}, {num_done} done before.", soft_wrap=True
        )
        self._estimate = Estimate([kind_of(run.planned.config) for run in waiting], max(1, num_workers))
        self._overall = self._progress.add_task("runs", total=len(runs), completed=num_done, note="")

    def on_encoding(self, what: str, done: int, total: int) -> None:
        """Images are being encoded."""
        self._progress.update(self._bar(what), description=what, completed=done, total=total)

    def on_progress(self, run: SweepRun, worker: str, done: int, total: int) -> None:
        """A worker has begun a run, or finished a round of it."""
        self._workers.add(worker)
        if total:
            self._estimate.progress(run.planned.name, kind_of(run.planned.config), time.monotonic(), done / total)
        name = f"  {run.planned.name}"
        self._progress.update(self._bar(worker), description=name, completed=done, total=total or 1)
        self._show_left()

    def on_end(self, run: SweepRun) -> None:
        """A run is done, or has failed."""
        is_done = run.state is RunState.DONE
        self._estimate.end(run.planned.name, kind_of(run.planned.config), time.monotonic(), is_done=is_done)
        words = run.scores if is_done else f"failed: {run.error}"
        self._progress.console.print(f"{run.planned.name}: {words}", markup=False, soft_wrap=True)
        assert self._overall is not None, "on_start comes before on_end"
        self._progress.advance(self._overall)
        self._show_left()

    def _bar(self, key: str) -> TaskID:
        """Return the bar of a worker or of what is encoded."""
        if key not in self._bars:
            self._bars[key] = self._progress.add_task("", total=1, note="")
        return self._bars[key]

    def _show_left(self) -> None:
        """Say how long it will take."""
        left = self._estimate.left(time.monotonic())
        if left is not None and self._overall is not None:
            self._progress.update(self._overall, note=f"{datetime.timedelta(seconds=round(left))} left")
