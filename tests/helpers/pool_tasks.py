"""Tasks for a pool of worker processes: fine ones, and ones that go wrong."""

import os
import signal
import sys
import time

from hushprompt.errors import ConfigError
from hushprompt.jobs.pool import CoreShares, WorkerPool

kept = ""


def task(tell, what):
    """Do what the word says."""
    tell(what, 1, 2)
    match what:
        case "killed":
            sys.stderr.write("out of cheese\n")
            os.kill(os.getpid(), signal.SIGKILL)
        case "wrong":
            return 1 / 0
        case "ours":
            raise ConfigError("Give the worker cheese.")
        case "endless":
            time.sleep(600)
    tell(what, 2, 2)
    return what


def start(what):
    """Keep something for all tasks of this worker."""
    global kept
    kept = what


def fail():
    """Start no worker."""
    raise ValueError("no cheese")


def look(tell):
    """Say what a task finds."""
    names = ("OMP_WAIT_POLICY", "OPENBLAS_NUM_THREADS")
    return {"process": os.getpid(), "environment": [os.environ[name] for name in names], "kept": kept}


def wait_forever():
    """Have a worker at work, and print its process."""
    with WorkerPool(CoreShares(1, 1, 1)) as workers:
        for event in workers.run(task, [("endless",)]):
            sys.stdout.write(event.worker.split()[1] + "\n")
            sys.stdout.flush()
