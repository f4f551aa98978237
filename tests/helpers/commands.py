"""The command as tests call it: settings of a run that trains in a blink, and what a command leaves."""

import sys
from pathlib import Path
from typing import NamedTuple

SETTINGS = [
    f"--set={setting}"
    for setting in (
        "backbone.name=toy",
        "data.name=toy",
        "partition.num_clients=3",
        "privacy.delta=1e-3",
        "method={name='dp_fpl', num_ctx=4, rank=2}",
        "sampling.sampling_prob=0.5",
    )
]


class Done(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


def command(*args):
    """Give the words that start the command in a process of its own."""
    return [sys.executable, "-m", "hushprompt", *map(str, args)]


def is_worker(process_id):
    """Whether a process is a live worker of a pool."""
    try:
        return b"spawn_main" in Path(f"/proc/{process_id}/cmdline").read_bytes()
    except OSError:  # it is gone
        return False
