"""The arms of finished runs, each with the settings that made it, read from run folders alone."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hushprompt.config import parse as configs
from hushprompt.errors import DataError
from hushprompt.reporting.pooling import arm_settings
from hushprompt.runs import records
from hushprompt.runs.records import ArmSummary


@dataclass(frozen=True, kw_only=True)
class Result:
    """One arm of one run."""

    summary: ArmSummary
    settings: dict[str, Any]
    """Everything that made it, by dotted key, but for the seed."""
    privacy: dict[str, Any]
    """Its entry in `privacy.json`."""
    provenance: dict[str, str]
    folder: Path


def read(paths: Sequence[Path]) -> tuple[list[Result], list[str]]:
    """Read the arms of run folders and sweep folders, and notes on what is missing.

    Raises:
        DataError: a folder holds no finished run, or a file is damaged.
    """
    results: list[Result] = []
    notes: list[str] = []
    for path in paths:
        folders, total = _runs(path)
        if len(folders) < total:
            notes.append(f"{path.name}: {total - len(folders)} of {total} runs are not finished.")
        for folder in folders:
            results += _arms(folder)
    return results, notes


def _runs(path: Path) -> tuple[list[Path], int]:
    """Return the finished run folders of a run or a sweep, and how many there should be."""
    if (path / "summary.json").exists():
        return [path], 1
    if (path / "sweep.json").exists():
        planned = [path / run["folder"] for run in records.read_json(path / "sweep.json")["runs"]]
    else:
        planned = [config.parent for config in sorted(path.glob("*/config.toml"))]
    finished = [folder for folder in planned if (folder / "summary.json").exists()]
    if not finished:
        raise DataError(f"{path} holds no finished run: neither it nor a folder in it has a summary.json.")
    return finished, len(planned)


def _arms(folder: Path) -> list[Result]:
    """Read the arms of one run."""
    config = configs.load(folder / "config.toml")
    plain = tomllib.loads(config.to_toml())
    summary, privacy = records.read_record(folder / "summary.json"), records.read_record(folder / "privacy.json")
    changes = [*plain["references"], {}]
    if not len(changes) == len(summary["arms"]) == len(privacy["arms"]):
        raise DataError(f"{folder} is damaged: its config, summary and privacy record have different numbers of arms.")
    results = []
    for change, arm, entry in zip(changes, summary["arms"], privacy["arms"], strict=True):
        result = records.from_json(ArmSummary, arm)
        results.append(
            Result(
                summary=result,
                settings=arm_settings(plain, change, is_trained=result.epsilon is not None),
                privacy=entry,
                provenance=summary["provenance"],
                folder=folder,
            )
        )
    return results
