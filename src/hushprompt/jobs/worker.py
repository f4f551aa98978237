"""A worker process of a sweep: `python -m hushprompt.jobs.worker`.

It reads jobs from its input and writes events to its output, one JSON object a line (`messages`). It makes one run
after another, so imports, data set and model are paid for once. When its input ends, so does it, at once and whatever
it does: it never outlives the sweep, and a run is safe to kill at any moment.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import sys
import threading
import tomllib
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from hushprompt import files
from hushprompt.config import parse as configs
from hushprompt.config.schema import RunConfig
from hushprompt.errors import HushpromptError
from hushprompt.federation import simulate
from hushprompt.federation.setup import Arm, assemble, load_fresh, load_model, make_partition
from hushprompt.jobs import messages
from hushprompt.jobs.messages import Event, Job
from hushprompt.process import tune
from hushprompt.runs.records import ArmSummary, RoundRecord

Send = Callable[[Event], None]
NUM_KEPT = 2
"""Things that stay in memory: the last data set and the last model."""


class Watcher:
    """Turns what a run tells into events."""

    def __init__(self, send: Send) -> None:
        """Tell `send`."""
        self._send = send
        self._num_rounds = 0
        self._num_before = 0

    def on_setup(self, what: str, done: int, total: int) -> None:
        """Images are being encoded."""
        self._send(Event(kind="encoding", what=what, done=done, total=total))

    def on_arm(self, arm: Arm, index: int, num_arms: int, num_rounds_done: int) -> None:
        """An arm begins, or goes on; each arm counts as long as this one."""
        self._num_before = index * arm.num_rounds
        self._num_rounds = num_arms * arm.num_rounds
        done = self._num_before + num_rounds_done
        self._send(Event(kind="training", what=arm.label, done=done, total=self._num_rounds))

    def on_round(self, record: RoundRecord) -> None:
        """A round is done."""
        done = self._num_before + record.round_index
        self._send(Event(kind="training", what=record.arm, done=done, total=self._num_rounds))


class Worker:
    """Does jobs, and keeps what it loaded from one to the next."""

    def __init__(self, send: Send) -> None:
        """Tell `send` what happens."""
        self._send = send
        self._load = functools.lru_cache(maxsize=NUM_KEPT)(load_fresh)

    def do(self, job: Job) -> None:
        """Do a job; whatever goes wrong is told, and the next job can come."""
        try:
            config = configs.parse(tomllib.loads(job.config))
            if job.kind == "encode":
                self._encode(config)
                self._send(Event(kind="done"))
            else:
                self._send(Event(kind="done", what=scores(self._run(config, Path(job.folder)))))
        except HushpromptError as error:
            self._send(Event(kind="failed", what=str(error)))
        except Exception as error:  # told, with its place; other runs go on
            traceback.print_exc()
            place = traceback.extract_tb(error.__traceback__)[-1]
            self._send(
                Event(
                    kind="failed", what=f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
                )
            )

    def _encode(self, config: RunConfig) -> None:
        """Put the features that a config needs into the cache, with as many threads as the config allows."""
        dataset = self._load(config.data)
        torch.set_num_threads(config.runtime.num_threads or len(os.sched_getaffinity(0)))
        try:
            model = load_model(config, dataset, [], self._load)
            kinds = {method.feature_kind for method in (config.method, *(arm.method for arm in config.references))}
            assemble(config, model, dataset, make_partition(config, dataset), Watcher(self._send).on_setup, kinds)
        finally:
            torch.set_num_threads(1)

    def _run(self, config: RunConfig, folder: Path) -> list[ArmSummary]:
        """Make a run, or finish one that was stopped."""
        if not (folder / "config.toml").exists():
            files.write_text(folder / "config.toml", config.to_toml())
        return simulate.run(config, folder, Watcher(self._send), self._load)


def scores(arms: list[ArmSummary]) -> str:
    """Say in a few words what came out of a run."""
    return f"local {100 * arms[-1].local:.1f}, neighbor {100 * arms[-1].neighbor:.1f}"


def main() -> None:
    """Do jobs until there is no more input."""
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else is printed must not get between the events

    def send(event: Event) -> None:
        events.write(messages.write(event))
        events.flush()

    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    # The arithmetic between the clients' steps takes one thread, however many workers there are, so that the last bits
    # of a result do not depend on their number.
    torch.set_num_threads(1)
    tune()
    worker = Worker(send)
    with contextlib.suppress(BrokenPipeError):
        while True:
            worker.do(jobs.get())


def _listen(jobs: queue.SimpleQueue[Job]) -> None:
    """Take jobs as they come; end the process with the input."""
    for line in sys.stdin:
        jobs.put(messages.read_job(line))
    os._exit(0)


if __name__ == "__main__":
    main()
