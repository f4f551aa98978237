"""A sweep with two processes side by side: how many threads compute at once, and what it gains.

Four short runs of the embedded preset's method alone, with one process a core, then with one that has all cores.
Threads are counted while the workers train: those of all workers that are running or ready to run.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.federations import embedded_federation
from benchmarks.rows import Row
from hushprompt.config import parse as configs

TITLE = "Sweep of four runs of the embedded preset, processes side by side"
SWEEP = """\
base = "embedded"
settings = {{ training.num_rounds = {num_rounds} }}
[axes]
seed = [1, 2, 3, 4]
"""
PAUSE = 0.05


@dataclass(frozen=True)
class Cost:
    """What one sweep took."""

    wall: float
    cpu: float
    threads: float
    """Threads that computed at once, in the mean over the counts in which any did."""


def rows(*, is_short: bool) -> list[Row]:
    """Measure both."""
    num_rounds, num_cores = 2 if is_short else 5, len(os.sched_getaffinity(0))
    embedded_federation(configs.load(configs.locate(None)))  # encodes what is not in the cache
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sweep.toml").write_text(SWEEP.format(num_rounds=num_rounds))
        together = sweep(folder, "together", num_cores)
        threads = Row(
            name=f"threads that compute at once with {num_cores} processes, against cores", figure="ratio", target=1.05,
            ours=together.threads, reference=float(num_cores), unit="", note="a mean over the sweep, start-up included",
        )  # fmt: skip
        if is_short:
            return [threads]
        alone = sweep(folder, "alone", 1)
    against = f"with {num_cores} processes, against one with {num_cores} threads"
    return [
        threads,
        Row(name=f"wall time {against}", figure="speedup", ours=together.wall, reference=alone.wall),
        Row(name=f"CPU time {against}", figure="ratio", ours=together.cpu, reference=alone.cpu),
    ]


def sweep(folder: Path, name: str, jobs: int) -> Cost:
    """Make the runs in a folder of their own."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "hushprompt", "sweep", str(folder / "sweep.toml"), "--jobs", str(jobs)]
    process = subprocess.Popen([*command, "--out", str(folder / name)], stdout=subprocess.DEVNULL)
    counts = []
    while process.poll() is None:
        counts.append(sum(running_threads(child) for child in children(process.pid)))
        time.sleep(PAUSE)
    if process.returncode:
        raise RuntimeError(f"The sweep ended with status {process.returncode}.")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(time.perf_counter() - start, cpu, statistics.mean(count for count in counts if count))


def children(parent: int) -> list[Path]:
    """Return the folders in /proc of a process's children."""
    return [path for path in Path("/proc").glob("[0-9]*") if _stat(path)[1:2] == [str(parent)]]


def running_threads(process: Path) -> int:
    """Count the threads of a process that are running or ready to run."""
    return sum(_stat(thread)[:1] == ["R"] for thread in (process / "task").glob("*"))


def _stat(path: Path) -> list[str]:
    """Return state, parent and what follows in a stat file; nothing for what has just ended."""
    try:
        return (path / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
