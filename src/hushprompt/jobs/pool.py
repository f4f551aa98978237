"""One pool of worker processes, for the runs of a sweep and for the federations of an audit.

A worker is a process of its own, not a fork: if it dies, its task fails and no other. It has its share of the cores,
keeps what it loaded for its next task, and ends with the process that started the pool, however that ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import queue
import signal
import sys
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from pebble import ProcessExpired, ProcessPool

from hushprompt.errors import HushpromptError, sentence_of

Tell = Callable[[str, int, int], None]
"""Called by a task with (what, done, total) as it gets on."""
TAIL = 2000
"""Characters of a dead worker's last words that are looked at."""
LONGEST = 200
"""Characters of what a task tells. A message of less than 4096 bytes goes through a pipe whole, without a lock that a
worker could hold when it dies."""

NO_WORKER = (
    "No worker process could be started. A script that starts workers needs "
    '`if __name__ == "__main__":` around what it does.'
)


@dataclass(frozen=True)
class CoreShares:
    """How the cores are shared."""

    num_workers: int
    num_threads: int
    """Threads of each worker."""
    num_cores: int


@dataclass(frozen=True)
class TaskProgress:
    """A task has begun, or got on."""

    task: int
    """Its place in the list of tasks."""
    worker: str
    """Who does it."""
    what: str
    done: int
    total: int
    """0 while it is not known."""


@dataclass(frozen=True)
class TaskEnd:
    """A task is done or has failed."""

    task: int
    value: Any = None
    """What the task returned."""
    error: str | None = None
    """What went wrong, in a sentence."""


def share_cores(jobs: int, num_tasks: int) -> CoreShares:
    """Share the cores among workers so that all together have as many threads as there are cores.

    Args:
        jobs: workers wanted; 0 is one a core.
        num_tasks: there are no more workers than that.

    >>> share_cores(3, 100) if len(os.sched_getaffinity(0)) == 8 else CoreShares(3, 2, 8)
    CoreShares(num_workers=3, num_threads=2, num_cores=8)
    """
    num_cores = len(os.sched_getaffinity(0))
    num_workers = max(1, min(jobs or num_cores, num_tasks))
    return CoreShares(num_workers, max(1, num_cores // num_workers), num_cores)


class WorkerPool:
    """Worker processes inside a `with`; leaving it early, such as by Ctrl-C, ends them at once."""

    def __init__(self, shares: CoreShares, initializer: Callable[..., None] | None = None, *initargs: Any) -> None:
        """Describe the pool; processes start with the first task.

        Args:
            shares: how many workers, and their threads.
            initializer: called with `initargs` in every worker before its first task.
            initargs: can be pickled.
        """
        self._shares, self._initializer, self._initargs = shares, initializer, initargs
        self._events: queue.SimpleQueue[TaskProgress | TaskEnd] = queue.SimpleQueue()
        self._numbers = itertools.count()

    def __enter__(self) -> WorkerPool:
        """Open the pipe through which workers tell of their progress."""
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hushprompt-")))
            # Libraries read these when they are loaded, so they must be there before a worker's first import.
            settings = {"OMP_WAIT_POLICY": "passive", "OPENBLAS_NUM_THREADS": str(self._shares.num_threads)}
            stack.enter_context(_environment(settings))
            context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads half-way
            reader, self._writer = context.Pipe(duplex=False)
            listener = threading.Thread(target=self._listen, args=(reader,), daemon=True)
            listener.start()
            self._folder = folder
            self._pool = ProcessPool(
                self._shares.num_workers,
                initializer=_start_worker,
                initargs=(self._writer, folder, self._initializer, self._initargs),
                context=context,
            )
            stack.callback(self._close, listener)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """End all workers, also those that are at work."""
        self._stack.close()

    def run(self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> Iterator[TaskProgress | TaskEnd]:
        """Call `function(tell, *task)` in a worker for every task; yield what is told, and every task's end.

        Args:
            function: of a module; must tell something when it begins if progress is to be shown from the start.
            tasks: arguments that can be pickled, begun in this order.
        """
        waiting = deque(enumerate(tasks))
        running: dict[int, int] = {}  # place in `tasks`, by the number that is this task's alone
        while waiting or running:
            while waiting and len(running) < self._shares.num_workers:
                index, args = waiting.popleft()
                number = next(self._numbers)
                running[number] = index
                self._schedule(number, function, args)
            event = self._events.get()
            if event.task not in running:
                continue  # told late by a task that has ended
            index = running.pop(event.task) if isinstance(event, TaskEnd) else running[event.task]
            yield dataclasses.replace(event, task=index)

    def _schedule(self, number: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Hand a task to the pool; its end becomes an event."""
        try:
            future = self._pool.schedule(_do, (number, function, args))
        except RuntimeError as error:  # no worker could be started
            self._events.put(self._end(number, error))
            return
        future.add_done_callback(lambda done: self._events.put(self._end(number, done.exception(), done)))

    def _end(self, number: int, error: BaseException | None, future: Any = None) -> TaskEnd:
        if error is None:
            value, sentence = future.result()
            return TaskEnd(number, value, sentence)
        if isinstance(error, ProcessExpired):
            how = f"by signal {-error.exitcode}" if error.exitcode < 0 else f"with status {error.exitcode}"
            words = self._last_words(str(error.pid))
            return TaskEnd(
                number, error=f"Its process ended {how}" + (f": {words}" if words else ". Was the memory full?")
            )
        return TaskEnd(number, error=f"{NO_WORKER} {self._last_words('*')}".strip())

    def _last_words(self, pattern: str) -> str:
        """Return the last line that a worker wrote; empty if it wrote nothing."""
        lines: list[str] = []
        for path in self._folder.glob(pattern):
            lines += path.read_bytes()[-TAIL:].decode(errors="replace").strip().splitlines()[-1:]
        return lines[-1] if lines else ""

    def _listen(self, reader: Connection) -> None:
        """Put what workers tell into the queue of events."""
        with reader:
            while (event := reader.recv()) is not None:
                self._events.put(event)

    def _close(self, listener: threading.Thread) -> None:
        """End workers, then the thread that listens to them."""
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()
        self._writer.send(None)
        listener.join()
        self._writer.close()


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment, which new processes inherit, and restore them."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# ---- in a worker

_writer: Connection | None = None
"""Where this process tells how it gets on."""


def _start_worker(
    writer: Connection, folder: Path, initializer: Callable[..., None] | None, initargs: tuple[Any, ...]
) -> None:
    global _writer
    _writer = writer
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a task is safe to end at any moment
    threading.Thread(target=_end_with_parent, daemon=True).start()
    errors = os.open(folder / str(os.getpid()), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(errors, sys.stderr.fileno())
    os.dup2(errors, sys.stdout.fileno())
    if initializer is not None:
        initializer(*initargs)


def prepare_training() -> None:
    """Make a worker ready to train, with one thread between the clients' steps.

    With one thread there, the last bits of a result do not depend on the number of workers.
    """
    import torch

    from hushprompt.process import tune

    torch.set_num_threads(1)
    tune()


def _end_with_parent() -> None:
    """Wait for the end of the process that wants the results, however it ends, and end as well."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only workers of a pool call this"
    parent.join()
    os._exit(1)


def _do(number: int, function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, str | None]:
    """Do a task; return its value, or a sentence that says what went wrong."""
    assert _writer is not None, "only workers of a pool call this"
    writer = _writer

    def tell(what: str, done: int, total: int) -> None:
        writer.send(TaskProgress(number, f"process {os.getpid()}", what[:LONGEST], done, total))

    return attempt(lambda: function(tell, *args))


def attempt(task: Callable[[], Any]) -> tuple[Any, str | None]:
    """Return what a task returns, or a sentence that says what went wrong.

    Not every error can be sent to another process, and a sentence can.
    """
    try:
        return task(), None
    except (HushpromptError, OSError) as error:
        return None, sentence_of(error)
    except Exception as error:  # told, with its place; other tasks go on
        traceback.print_exc()
        place = traceback.extract_tb(error.__traceback__)[-1]
        return None, f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
