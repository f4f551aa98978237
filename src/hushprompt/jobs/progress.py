"""Progress bars of a sweep, in a terminal or a notebook."""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column

from hushprompt.config.schema import RunConfig
from hushprompt.jobs.sweep_folder import RunState, SweepRun
from hushprompt.registry import METHODS
from hushprompt.words import counted

Kind = tuple[str, int]
"""Runs of one method and number of rounds are taken to be equally long."""


def kind_of(config: RunConfig) -> Kind:
    """Return what a run's length is guessed from."""
    return METHODS.name_of(config.method), config.training.num_rounds


class Estimate:
    """Learns from the runs that are done, and from how far the others have come."""

    def __init__(self, waiting: Iterable[Kind], num_workers: int) -> None:
        self._waiting = list(waiting)
        self._num_workers = num_workers
        self._seconds: dict[Kind, list[float]] = {}
        self._running: dict[str, tuple[Kind, float, float, float]] = {}  # kind, start, share then, share now

    def progress(self, name: str, kind: Kind, now: float, share_done: float) -> None:
        """A run has begun, or has come so far; the first call tells what of it was done before."""
        if name not in self._running:
            self._waiting.remove(kind)
            self._running[name] = (kind, now, share_done, share_done)
        _, start, before, _ = self._running[name]
        self._running[name] = (kind, start, before, share_done)

    def end(self, name: str, kind: Kind, now: float, *, is_done: bool) -> None:
        """A run has ended; only one that was made from its start to its end is a measurement."""
        if name not in self._running:  # it failed before it began
            self._waiting.remove(kind)
            return
        _, start, before, _ = self._running.pop(name)
        if is_done and before == 0:
            self._seconds.setdefault(kind, []).append(now - start)

    def left(self, now: float) -> float | None:
        """Return the seconds that the sweep will still take; None while nothing is known."""
        running = [self._whole(*run, now) for run in self._running.values()]
        guesses = [whole for whole in running if whole is not None]
        guesses += [value for values in self._seconds.values() for value in values]
        if not guesses:
            return None
        usual = statistics.fmean(guesses)
        left = sum(self._usual(kind, usual) for kind in self._waiting)
        for (kind, start, _, _), whole in zip(self._running.values(), running, strict=True):
            left += max(0.0, (self._usual(kind, usual) if whole is None else whole) - (now - start))
        return left / self._num_workers

    def _usual(self, kind: Kind, otherwise: float) -> float:
        """Return how long a run of this kind takes."""
        return statistics.fmean(self._seconds[kind]) if kind in self._seconds else otherwise

    def _whole(self, kind: Kind, start: float, before: float, share_done: float, now: float) -> float | None:
        """Guess a run's seconds, from those before it or from its own pace."""
        if kind in self._seconds and before == 0:
            return statistics.fmean(self._seconds[kind])
        return (now - start) * (1 - before) / (share_done - before) if share_done > before else None


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
