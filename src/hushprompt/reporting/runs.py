"""What a report reads: run folders, as they lie on the disk, old ones and unfinished ones too.

A report is made from records alone. Everything but `summary.json` and `config.toml` may be missing; then the report
says so where it would have used it.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hushprompt.config import parse as configs
from hushprompt.errors import DataError, HushpromptError
from hushprompt.runs import records


@dataclass(frozen=True, kw_only=True)
class Result:
    """One line of a run's result table."""

    label: str
    """Of the arm, such as "dp_fpl, epsilon 8"; names it in the other files of the run."""
    method: str
    title: str
    epsilon: float | None
    """Proven for the budget's audience; None where nothing private was used, inf where no noise was added."""
    delta: float
    audience: str
    scores: Mapping[str, float]
    """Fractions by name: local, neighbor, harmonic_mean, worst_client; NaN where unknown."""
    seconds: float
    num_rounds: int
    num_last_rounds: int
    """Rounds at the end whose scores are averaged."""
    clients: Sequence[Mapping[str, float]]
    """Local and neighbor accuracy of every client, as fractions."""


SCORES = ("local", "neighbor", "harmonic_mean", "worst_client")
NEW_SCORES = ("base", "new", "base_new_harmonic_mean")
"""Only where some classes are kept from training."""


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """Who has how many examples of which class."""

    class_names: Sequence[str]
    client_names: Sequence[str]
    train: np.ndarray
    """[k, c] training examples."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished run."""

    name: str
    """Of its folder."""
    config: Mapping[str, Any]
    config_text: str
    results: Sequence[Result]
    provenance: Mapping[str, str]
    rounds: Mapping[str, Sequence[Mapping[str, Any]]]
    """Records of each arm by its label, in order."""
    privacy: Mapping[str, Any] | None
    holdings: Holdings | None
    confusion: Mapping[str, Mapping[str, np.ndarray]]
    """[c, c] counts, true by predicted class, "local" and "neighbor", by arm label; empty in old runs."""
    audit: Mapping[str, Any] | None
    """What attacks on the run found; None where it was not audited."""

    @property
    def seed(self) -> int:
        """Root seed of the run."""
        return int(self.config.get("seed", 1))


@dataclass(frozen=True, kw_only=True)
class Found:
    """The runs below the folders that were given."""

    runs: Sequence[Run]
    unfinished: Sequence[str]
    """Names of folders that have a config and no summary yet."""


def find(folders: Sequence[Path]) -> Found:
    """Read every run at or below the given folders, each once, in the order of the folders and then of names.

    Raises:
        DataError: a folder holds no run, no run is finished, or a file is damaged.
    """
    configs: dict[Path, Path] = {}
    for folder in folders:
        below = [folder / "config.toml"] if (folder / "config.toml").exists() else list(folder.rglob("config.toml"))
        if not below:
            raise DataError(
                f"{folder} holds no run: there is no config.toml in it or below it. "
                "Give run folders, or a folder of them."
            )
        for path in sorted(below, key=_by_numbers):
            configs.setdefault(path.resolve(), path)
    found = [path.parent for path in configs]
    finished = [folder for folder in found if (folder / "summary.json").exists()]
    if not finished:
        raise DataError(f"No run in {', '.join(map(str, folders))} is finished: none has a summary.json yet.")
    names = _short_names(finished)
    return Found(
        runs=[read(folder, name) for folder, name in zip(finished, names, strict=True)],
        unfinished=[folder.name for folder in found if folder not in finished],
    )


def _by_numbers(path: Path) -> list[tuple[float, str]]:
    """Return a key that sorts paths by name, and by size where numbers stand in them.

    >>> sorted(map(Path, ["clients100-rank2", "clients25-rank10", "clients25-rank2"]), key=_by_numbers)[0].name
    'clients25-rank2'
    """
    parts = re.split(r"(\d+(?:\.\d+)?)", str(path))  # words and numbers in turns
    return [(float(part), "") if at % 2 else (0.0, part) for at, part in enumerate(parts)]


def read(folder: Path, name: str) -> Run:
    """Read one finished run.

    Raises:
        DataError: a file is damaged.
    """
    text = _read_text(folder / "config.toml")
    try:
        config = _with_defaults(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{folder / 'config.toml'} is damaged: {error}.") from error
    summary = records.read_record(folder / "summary.json")
    privacy, audit = folder / "privacy.json", folder / "audit" / "audit.json"
    holdings = _holdings(folder / "partition.json")
    return Run(
        name=name,
        config=config,
        config_text=text,
        results=[_result(arm, folder / "summary.json") for arm in summary.get("arms", [])],
        provenance={str(key): str(value) for key, value in summary.get("provenance", {}).items()},
        rounds=_rounds(folder / "records.jsonl"),
        privacy=records.read_record(privacy) if privacy.exists() else None,
        audit=records.read_record(audit) if audit.exists() else None,
        holdings=holdings,
        confusion=_confusion(folder / "confusion", len(holdings.class_names)) if holdings else {},
    )


def _with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Fill in settings that did not exist when a config was written; one that is not understood stays as it is."""
    try:
        return tomllib.loads(configs.parse(values).to_toml())
    except HushpromptError:
        return values


def number(value: Any) -> float:
    """Read a number from JSON: "inf" is infinity; null, and anything else that is no number, is NaN.

    >>> number("inf"), number(None), number(3)
    (inf, nan, 3.0)
    """
    if value == "inf":
        return math.inf
    return float(value) if isinstance(value, (int, float)) else math.nan


def _result(arm: Mapping[str, Any], path: Path) -> Result:
    """Read one arm of a summary."""
    try:
        label, method = str(arm["arm"]), str(arm["method"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: an arm lacks {error}.") from error
    return Result(
        label=label,
        method=method,
        title=str(arm.get("title", method)),
        epsilon=None if arm.get("epsilon") is None else number(arm["epsilon"]),
        delta=number(arm.get("delta")),
        audience=str(arm.get("audience", "")),
        scores={name: number(arm.get(name)) for name in (*SCORES, *NEW_SCORES)},
        seconds=number(arm.get("seconds")),
        num_rounds=int(arm.get("num_rounds", 0)),
        num_last_rounds=int(arm.get("num_last_rounds", 1)),
        clients=[{name: number(client.get(name)) for name in ("local", "neighbor")} for client in arm["per_client"]]
        if "per_client" in arm
        else [],
    )


def _rounds(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the round records by arm; none where the file is missing."""
    rounds: dict[str, list[dict[str, Any]]] = {}
    for index, line in enumerate(_read_text(path).splitlines() if path.exists() else []):
        try:
            record = records.renamed(json.loads(line))
            rounds.setdefault(str(record["arm"]), []).append(record)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged in line {index + 1}: {error}.") from error
    return rounds


def _holdings(path: Path) -> Holdings | None:
    """Read who holds what; None in old runs."""
    if not path.exists():
        return None
    values = records.read_record(path)
    return Holdings(
        class_names=[str(name) for name in values["class_names"]],
        client_names=[str(name) for name in values["client_names"]],
        train=records.dense_rows(values["train"], len(values["class_names"])),
    )


def _confusion(folder: Path, num_classes: int) -> dict[str, dict[str, np.ndarray]]:
    """Read the confusion tables by arm."""
    tables = {}
    for path in sorted(folder.glob("*.json")):
        values = records.read_record(path)
        tables[str(values["arm"])] = {whose: _square(values[whose], num_classes) for whose in ("local", "neighbor")}
    return tables


def _square(rows: list[dict[str, int]], num_classes: int) -> np.ndarray:
    """Return counts of all classes [c, c], where only the first ones, which are trained on, are in the file."""
    return records.dense_rows([*rows, *({} for _ in range(num_classes - len(rows)))], num_classes)


def _read_text(path: Path) -> str:
    """Read a text file of a run."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}).") from error


def _short_names(folders: Sequence[Path]) -> list[str]:
    """Name each folder by its last part, or by as many as tell it from the others."""
    parts = [folder.resolve().parts for folder in folders]
    depth = 1
    while len({path[-depth:] for path in parts}) < len(parts):
        depth += 1
    return ["/".join(path[-depth:]) for path in parts]
