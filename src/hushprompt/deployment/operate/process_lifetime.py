"""Lifetime of processes (Linux): end with the parent, and find and end all descendants."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
"""What `prctl` is asked for: a signal when the parent ends; to become the parent of orphans below."""
POLL_S = 0.05


def end_with_parent() -> None:
    """Have this process get SIGTERM when its parent ends, however that ends."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def adopting_orphans() -> Iterator[None]:
    """Be the parent of what this process's children leave behind, for a while: so nothing they started gets lost."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        _prctl(PR_SET_CHILD_SUBREAPER, 0)


def end_descendants(grace_s: float) -> None:
    """End all that this process has started, in whatever session: SIGTERM, then SIGKILL after `grace_s` seconds."""
    for number, seconds in ((signal.SIGTERM, grace_s), (signal.SIGKILL, grace_s)):
        deadline = time.monotonic() + seconds
        sent: set[int] = set()
        while (alive := descendants(os.getpid())) and time.monotonic() < deadline:
            for process_id in alive - sent:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process_id, number)
            sent |= alive
            reap()
            time.sleep(POLL_S)
        if not alive:
            return


def descendants(process_id: int) -> set[int]:
    """Return the ids of all processes below one, zombies included."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text()
        except OSError:  # it ended as we looked
            continue
        parent = int(status.rpartition(")")[2].split()[1])
        children.setdefault(parent, []).append(int(folder.name))
    found: set[int] = set()
    waiting = [process_id]
    while waiting:
        below = children.get(waiting.pop(), [])
        found |= set(below)
        waiting += below
    return found


def reap() -> None:
    """Take the exit status of adopted processes that have ended, so that they go."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _prctl(option: int, value: int) -> None:
    """Call prctl; elsewhere than on Linux nothing happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
