"""A sweep's folder: which of its runs lie there, which are done, and `sweep.json`, which says so.

What is done is read from the run folders themselves, by the identity of their configs; names and `sweep.json` decide
nothing.
"""

from __future__ import annotations

import datetime
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from hushprompt.config import parse as configs
from hushprompt.errors import ConfigError, DataError
from hushprompt.extras import version_of
from hushprompt.jobs.sweep_file import PlannedRun, Sweep
from hushprompt.runs import records

FILE = "sweep.json"
PACKAGES = ("hushprompt", "torch", "numpy", "dp-accounting")


class RunState(StrEnum):
    """How far a run has come."""

    WAITING = "waiting"
    """Nothing of it is there."""
    BEGUN = "begun"
    """It was stopped, and goes on where it stopped."""
    DONE = "done"
    FAILED = "failed"
    """The last attempt ended with an error; the next call of the sweep tries again."""


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """One run of a sweep and its folder."""

    planned: PlannedRun
    folder: Path
    state: RunState
    scores: str = ""
    """What came out in a few words, where it was made just now."""
    error: str | None = None
    """Why it failed, where it did just now."""


def place(runs: Sequence[PlannedRun], root: Path) -> list[SweepRun]:
    """Return every run its folder below `root`: the one that holds its identity, or a new one with its name."""
    existing = _identities(root)
    taken = {folder.name for folder in existing.values()}
    placed = []
    for run in runs:
        if run.identity in existing:
            folder = existing[run.identity]
        else:
            # A folder of that name holds another config, such as that of an older version of the sweep.
            name = f"{run.name}-{run.identity[:8]}" if run.name in taken else run.name
            folder = root / name
        placed.append(SweepRun(planned=run, folder=folder, state=_state(folder, run.identity)))
    return placed


def write(root: Path, sweep: Sweep, runs: Iterable[SweepRun]) -> None:
    """Write `sweep.json`: the sweep file, versions, and all runs with their states."""
    record = {
        "sweep": f"{sweep.name}.toml",
        "content": sweep.content,
        "versions": {"python": platform.python_version()} | {package: version_of(package) for package in PACKAGES},
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "runs": [_run_json(root, run) for run in runs],
    }
    records.write_json(root / FILE, record)


def _run_json(root: Path, run: SweepRun) -> dict[str, Any]:
    entry = {
        "folder": str(run.folder.relative_to(root)),
        "labels": dict(run.planned.labels),
        "config_identity": run.planned.identity,
        "state": str(run.state),
    }
    return entry if run.error is None else {**entry, "error": run.error}


def _identities(root: Path) -> dict[str, Path]:
    """Return the run folders below `root` by what their configs say; passes over what this version cannot read."""
    found: dict[str, Path] = {}
    for path in sorted(root.glob("*/config.toml")):
        try:
            identity = configs.load_stored(path.parent).identity()
        except ConfigError:
            continue
        if identity not in found or _state(path.parent, identity) is RunState.DONE:
            found[identity] = path.parent
    return found


def _state(folder: Path, identity: str) -> RunState:
    """Read how far a run has come. Its summary is the last file that a run writes."""
    try:
        summary = records.read_record(folder / "summary.json")
    except DataError:
        return RunState.BEGUN if (folder / "checkpoint").exists() else RunState.WAITING
    return RunState.DONE if summary["provenance"]["config_identity"] == identity else RunState.BEGUN
