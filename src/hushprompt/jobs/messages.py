"""What a sweep and its worker processes say to each other: one JSON object a line."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker is to do next."""

    kind: Literal["encode", "run"]
    """"encode": put the features of a config into the cache. "run": make or finish a run."""
    config: str
    """The resolved config as TOML."""
    folder: str = ""
    """The run folder of a "run"."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a worker tells."""

    kind: Literal["encoding", "training", "done", "failed"]
    """"done" and "failed" end a job."""
    what: str = ""
    """What is encoded; the arm in training; the scores of what is done; the error."""
    done: int = 0
    """Images encoded, or rounds trained of the whole run."""
    total: int = 0
    """Images to encode, or rounds of the whole run."""


def write(message: Job | Event) -> str:
    """Return a message as one line."""
    return json.dumps(dataclasses.asdict(message)) + "\n"


def read_job(line: str) -> Job:
    """Read a job."""
    return Job(**json.loads(line))


def read_event(line: str) -> Event:
    """Read an event."""
    return Event(**json.loads(line))
