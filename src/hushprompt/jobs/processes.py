"""The processes of a sweep: workers side by side, each with its share of the cores.

Workers are processes of their own, not forks: a crash of one ends its run and nothing else. They end with this process,
however it ends, because their input then does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import queue
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, Protocol, runtime_checkable

from hushprompt.config.schema import RunConfig
from hushprompt.jobs import messages
from hushprompt.jobs.messages import Event, Job
from hushprompt.jobs.sweep_folder import SweepRun
from hushprompt.registry import METHODS

COMMAND = (sys.executable, "-m", "hushprompt.jobs.worker")
GRACE = 10.0
"""Seconds that a worker has to end after its input has."""
TAIL = 2000
"""Characters of a dead worker's last words that are looked at."""


@runtime_checkable
class Observer(Protocol):
    """Who watches a sweep; all calls come from the thread that called `make`."""

    def on_encoding(self, event: Event) -> None:
        """Features are being made."""

    def on_progress(self, worker: int, run: SweepRun, event: Event) -> None:
        """A worker has begun a run, or finished a round of it."""

    def on_end(self, worker: int, run: SweepRun, event: Event) -> None:
        """A run is done, or has failed."""


@dataclass(frozen=True)
class Shares:
    """How the cores are shared."""

    num_workers: int
    num_threads: int
    """Threads of each worker."""
    num_cores: int


def share(jobs: int, num_runs: int) -> Shares:
    """Share the cores among workers so that all together have as many threads as there are cores.

    Args:
        jobs: workers wanted; 0 is one a core.
        num_runs: runs to make; there are no more workers than that.

    >>> share(3, 100) if len(os.sched_getaffinity(0)) == 8 else Shares(num_workers=3, num_threads=2, num_cores=8)
    Shares(num_workers=3, num_threads=2, num_cores=8)
    """
    num_cores = len(os.sched_getaffinity(0))
    num_workers = max(1, min(jobs or num_cores, num_runs))
    return Shares(num_workers, max(1, num_cores // num_workers), num_cores)


def make(runs: Sequence[SweepRun], shares: Shares, observer: Observer) -> None:
    """Make runs side by side, each in its folder; the features that they need are made first, with all cores.

    A run that fails is told to the observer, and the others go on.
    """
    told: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_worker(shares)) for _ in range(shares.num_workers)]
        pool = stack.enter_context(ThreadPoolExecutor(shares.num_workers))
        for worker in workers:
            stack.callback(worker.stop)  # comes before the pool waits for its threads
        ready = _encoded(runs, workers[0], shares, observer)
        waiting = deque(ready)
        serving = [
            pool.submit(_serve, number, worker, waiting, shares, observer, told)
            for number, worker in enumerate(workers)
        ]
        num_serving = len(serving)
        while num_serving:
            tell = told.get()
            if tell is None:
                num_serving -= 1
            else:
                tell()
        for server in serving:
            server.result()


def _encoded(runs: Sequence[SweepRun], worker: WorkerProcess, shares: Shares, observer: Observer) -> list[SweepRun]:
    """Put all features into the cache; give the runs whose features are there, the others have failed."""
    outcomes: dict[Any, Event] = {}
    ready = []
    for run in runs:
        config = run.planned.config
        # A method may need features of its own kind.
        methods = (config.method, *(arm.method for arm in config.references))
        kinds = frozenset(METHODS.name_of(method) for method in methods)
        key = (config.backbone, config.data, config.features, config.evaluation, kinds)
        if key not in outcomes:
            job = Job(kind="encode", config=_with_threads(config, shares.num_cores).to_toml())
            outcomes[key] = worker.do(job, observer.on_encoding)
        if outcomes[key].kind == "failed":
            observer.on_end(0, run, outcomes[key])
        else:
            ready.append(run)
    return ready


def _serve(
    number: int,
    worker: WorkerProcess,
    waiting: deque[SweepRun],
    shares: Shares,
    observer: Observer,
    told: queue.SimpleQueue[Callable[[], None] | None],
) -> None:
    """Return one worker run after run; runs in a thread of its own and has the main thread tell the observer."""
    try:
        while not worker.is_stopped:
            try:
                run = waiting.popleft()
            except IndexError:
                return
            config = _with_threads(run.planned.config, shares.num_threads)
            job = Job(kind="run", config=config.to_toml(), folder=str(run.folder))

            def progress(event: Event, run: SweepRun = run) -> None:
                told.put(functools.partial(observer.on_progress, number, run, event))

            progress(Event(kind="training"))
            event = worker.do(job, progress)
            if not worker.is_stopped:
                told.put(functools.partial(observer.on_end, number, run, event))
    finally:
        told.put(None)


class WorkerProcess:
    """One worker, started again should it die."""

    def __init__(self, num_threads: int) -> None:
        """Start it."""
        self.is_stopped = False
        self._env = {**os.environ, "OMP_WAIT_POLICY": "passive", "OPENBLAS_NUM_THREADS": str(num_threads)}
        self._start()

    def do(self, job: Job, on_event: Callable[[Event], None]) -> Event:
        """Have a job done; give the event that ended it, which says so if the worker died of it."""
        if self._process.poll() is not None and not self.is_stopped:
            self._close_files()
            self._start()
        try:
            self._in.write(messages.write(job))
            self._in.flush()
            for line in self._out:
                event = messages.read_event(line)
                if event.kind in ("done", "failed"):
                    return event
                on_event(event)
        except (BrokenPipeError, ValueError):  # it died, or `stop` closed its input, as we spoke
            pass
        return Event(kind="failed", what=self._last_words())

    def stop(self) -> None:
        """End it: closing its input is enough, and if not, kill it."""
        self.is_stopped = True
        with contextlib.suppress(BrokenPipeError):
            self._in.close()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """End it and close its files."""
        self.stop()
        self._close_files()

    def _start(self) -> None:
        """Start the process. A session of its own keeps Ctrl-C, which the terminal sends to all, from it."""
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=self._env, text=True,
            encoding="utf-8", start_new_session=True,
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout

    def _close_files(self) -> None:
        """Close this side of what the process wrote to."""
        for file in (self._in, self._out, self._errors):
            with contextlib.suppress(BrokenPipeError):
                file.close()

    def _last_words(self) -> str:
        """Say how the process ended, and its last line of errors."""
        status = self._process.wait()
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - TAIL))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return f"Its process ended {how}" + (f": {lines[-1]}" if lines else ". Was the memory full?")


@contextlib.contextmanager
def _worker(shares: Shares) -> Iterator[WorkerProcess]:
    """Start a worker, and end it with the block."""
    worker = WorkerProcess(shares.num_threads)
    try:
        yield worker
    finally:
        worker.close()


def _with_threads(config: RunConfig, num_threads: int) -> RunConfig:
    """Return the config with a number of threads; that is no part of its identity."""
    return dataclasses.replace(config, runtime=dataclasses.replace(config.runtime, num_threads=num_threads))
