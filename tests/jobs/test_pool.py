import os
import signal
import subprocess
import sys
import time

import pytest

from helpers import pool_tasks
from hushprompt.jobs import pool
from hushprompt.jobs.pool import CoreShares, TaskEnd, TaskProgress, WorkerPool, share_cores

ONE = CoreShares(num_workers=1, num_threads=1, num_cores=1)
TWO = CoreShares(num_workers=2, num_threads=1, num_cores=2)


def test_cores_are_shared_and_never_taken_twice(monkeypatch):
    monkeypatch.setattr(pool.os, "sched_getaffinity", lambda _: set(range(8)))
    assert share_cores(0, 100) == CoreShares(num_workers=8, num_threads=1, num_cores=8)
    assert share_cores(3, 100) == CoreShares(num_workers=3, num_threads=2, num_cores=8)
    assert share_cores(0, 2) == CoreShares(num_workers=2, num_threads=4, num_cores=8)
    assert share_cores(16, 100) == CoreShares(num_workers=16, num_threads=1, num_cores=8)
    for jobs in range(1, 9):
        shares = share_cores(jobs, 100)
        assert shares.num_workers * shares.num_threads <= 8


def test_a_worker_that_dies_fails_its_task_and_the_others_are_done():
    with WorkerPool(TWO) as workers:
        events = list(
            workers.run(pool_tasks.task, [("fine",), ("killed",), ("fine",), ("wrong",), ("ours",), ("fine",)])
        )
        ends = {event.task: event for event in events if isinstance(event, TaskEnd)}
        progress = [event for event in events if isinstance(event, TaskProgress)]
    assert sorted(ends) == list(range(6))
    assert [ends[index].error for index in (0, 2, 5)] == [None] * 3
    assert ends[1].error == "Its process ended by signal 9: out of cheese"
    assert ends[3].error.startswith("ZeroDivisionError: division by zero (pool_tasks.py:")
    assert ends[4].error == "Give the worker cheese."
    assert all(event.total == 2 for event in progress)  # what a task tells just before its end may come too late


def test_a_worker_does_task_after_task_with_its_share_of_the_cores():
    with WorkerPool(CoreShares(1, 3, 3), pool_tasks.start, "kept") as workers:
        seen = [one.value for one in workers.run(pool_tasks.look, [()] * 2) if isinstance(one, TaskEnd)]
    assert seen[0]["process"] == seen[1]["process"] != os.getpid()
    assert seen[0]["environment"] == ["passive", "3"]
    assert seen[0]["kept"] == "kept"
    assert os.environ.get("OPENBLAS_NUM_THREADS") != "3"


def test_leaving_early_ends_workers_at_once_that_are_at_work():
    with WorkerPool(ONE) as workers:
        event = next(workers.run(pool_tasks.task, [("endless",)]))
    assert (event.task, event.what, event.done, event.total) == (0, "endless", 1, 2)
    with pytest.raises(ProcessLookupError):
        os.kill(int(event.worker.split()[1]), 0)


def test_a_pool_that_cannot_start_says_so_and_ends():
    with WorkerPool(ONE, pool_tasks.fail) as workers:
        ends = list(workers.run(pool_tasks.task, [("fine",)] * 3))
    assert [end.task for end in ends] == [0, 1, 2]
    assert all(end.error.startswith(pool.NO_WORKER) for end in ends)
    assert ends[0].error.endswith("ValueError: no cheese")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_worker_outlives_the_process_that_wanted_it():
    script = "from helpers import pool_tasks; pool_tasks.wait_forever()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment, text=True) as parent:
        worker = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while os.path.exists(f"/proc/{worker}/cmdline"):
        assert time.monotonic() < deadline, "it trains on"
        time.sleep(0.05)
