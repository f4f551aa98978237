"""Runs in one compressed file: gzip of JSON lines, one line a run, equal runs giving equal bytes.

A line is {"folder": name, "files": {path inside the folder: text}}. The reader of runs takes such a file wherever it
takes a folder. To pack the finished runs of a sweep: `pack(finished(sweep), path)`.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hushprompt import files
from hushprompt.errors import DataError
from hushprompt.runs import records

SUFFIX = ".jsonl.gz"
FILE = "runs.jsonl.gz"
"""Name of the file in a folder that holds a packed sweep."""
RESULTS = ("config.toml", "summary.json", "privacy.json")
"""Files that tables are made from."""
RECORDS = (*RESULTS, "partition.json", "records.jsonl", "audit/audit.json", "confusion/*.json")
"""Files that a report is made from."""


@dataclass(frozen=True)
class PackedRun:
    """The texts of one run folder."""

    folder: str
    """Name of the folder."""
    files: Mapping[str, str]
    """Texts by path inside the folder, with forward slashes."""


def run_folders(path: Path) -> list[Path]:
    """Return the run folders at or below a path: those that a sweep planned, in its order, else those that are there.

    Raises:
        DataError: `sweep.json` is damaged.
    """
    if (path / "config.toml").exists():
        return [path]
    if (path / "sweep.json").exists():
        return [path / run["folder"] for run in records.read_json(path / "sweep.json")["runs"]]
    return [config.parent for config in sorted(path.rglob("config.toml"), key=_by_numbers)]


def finished(path: Path) -> list[Path]:
    """Return the run folders at or below a path that have a summary."""
    return [folder for folder in run_folders(path) if (folder / "summary.json").exists()]


def pack(folders: Sequence[Path], path: Path, patterns: Sequence[str] = RECORDS) -> int:
    """Write run folders to one file, in their order, and return how many there are.

    Args:
        folders: run folders.
        path: the file to write, which ends in .jsonl.gz.
        patterns: files of a folder to keep, as globs; one that is missing is left out.

    Raises:
        DataError: two folders have the same name, or a file cannot be read.
    """
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        raise DataError(f"{path} cannot hold two runs of the same name: {', '.join(sorted(names))}.")
    lines = [_line(folder, patterns) for folder in folders]
    # Without a time and a file name in its header, the file depends on the runs alone.
    files.write_bytes(path, gzip.compress("".join(lines).encode(), compresslevel=9, mtime=0))
    return len(lines)


def iterate(path: Path) -> Iterator[PackedRun]:
    """Read the runs of a file that `pack` wrote, in its order.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                run = json.loads(line)
                yield PackedRun(str(run["folder"]), {str(name): str(text) for name, text in run["files"].items()})
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}). Is it a packed sweep, {SUFFIX}?") from error


def unpack(path: Path, target: Path) -> list[Path]:
    """Write the runs of a file back as folders below `target`, and return these.

    Raises:
        DataError: the file is damaged, or names a place outside `target`.
    """
    folders = []
    for run in iterate(path):
        for name, text in run.files.items():
            inside = PurePosixPath(run.folder, name)
            if inside.is_absolute() or ".." in inside.parts:
                raise DataError(f"{path} names a file outside its run: {inside}.")
            files.write_text(target / inside, text)
        folders.append(target / run.folder)
    return folders


def _by_numbers(path: Path) -> list[tuple[float, str]]:
    """Return a key that sorts paths by name, and by size where numbers stand in them.

    >>> sorted(map(Path, ["clients100-rank2", "clients25-rank10", "clients25-rank2"]), key=_by_numbers)[0].name
    'clients25-rank2'
    """
    parts = re.split(r"(\d+(?:\.\d+)?)", str(path))  # words and numbers in turns
    return [(float(part), "") if at % 2 else (0.0, part) for at, part in enumerate(parts)]


def _line(folder: Path, patterns: Sequence[str]) -> str:
    found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    try:
        texts = {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in found}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{folder} cannot be packed ({error}).") from error
    return json.dumps({"folder": folder.name, "files": texts}, ensure_ascii=False, separators=(",", ":")) + "\n"
