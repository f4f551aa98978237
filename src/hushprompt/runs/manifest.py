"""`manifest.json`: SHA-256 of every file that a finished run publishes or stands on.

Left out: `config.toml`, whose paths may change (`identity.json` says what it must say), the checkpoint, and what other
commands leave. The manifest's own SHA-256 is the digest to keep elsewhere: a folder that is rewritten as a whole,
manifest included, cannot be told from inside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from hushprompt.runs import records

FILE = "manifest.json"
CLAIMS = ("summary.json", "privacy.json", "ledger.jsonl", "records.jsonl", "identity.json")
"""Files that tables and reports are made from, and what these stand on."""
PATTERNS = (
    "agreement.json", "confusion/*.json", "identity.json", "ledger.jsonl", "metrics.jsonl", "partition.json",
    "privacy.json", "prompts/*", "records.jsonl", "summary.json",
)  # fmt: skip


def write(folder: Path, coming: Mapping[str, str] | None = None) -> None:
    """Write the manifest of a folder; `coming` are texts of files that are written after it, by name."""
    found = {path.relative_to(folder).as_posix(): hash_of(path) for path in _files(folder)}
    found |= {name: hashlib.sha256(text.encode()).hexdigest() for name, text in (coming or {}).items()}
    records.write_json(folder / FILE, {"sha256": dict(sorted(found.items()))})


def digest(folder: Path) -> str:
    """Return the digest to keep elsewhere; empty where there is no manifest, as in runs of older versions."""
    path = folder / FILE
    return hash_of(path) if path.exists() else ""


def changes(folder: Path, only: Sequence[str] = ()) -> list[str]:
    """Say which files are not those of the run's end; none where there is no manifest.

    Args:
        folder: of the run.
        only: names of files to look at; none: all.

    Raises:
        DataError: the manifest is damaged.
    """
    if not (folder / FILE).exists():
        return []
    recorded: dict[str, str] = records.read_json(folder / FILE).get("sha256", {})
    found = []
    for name, known in recorded.items():
        if only and name not in only:
            continue
        if not (folder / name).is_file():
            found.append(f"{name} is gone")
        elif hash_of(folder / name) != known:
            found.append(f"{name} was changed after the run ended")
    new = [path.relative_to(folder).as_posix() for path in _files(folder)] if not only else []
    return found + [f"{name} was added after the run ended" for name in new if name not in recorded]


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    """Return the files that a manifest is about, hidden ones left out."""
    found = {path for pattern in PATTERNS for path in folder.glob(pattern)}
    return sorted(path for path in found if path.is_file() and not path.name.startswith("."))
