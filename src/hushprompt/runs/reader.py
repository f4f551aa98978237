"""The one reader of runs: of run folders, sweep folders and packed sweeps, old ones and unfinished ones too.

Tables, figures and reports are made from records alone. Everything but `summary.json` and `config.toml` may be missing;
whoever would have used it says so.
"""

from __future__ import annotations

import fnmatch
import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hushprompt.config import parse as configs
from hushprompt.config.values import to_plain
from hushprompt.errors import DataError, HushpromptError
from hushprompt.privacy.statements import with_noise_source
from hushprompt.runs import archive, manifest, records
from hushprompt.runs.archive import PackedRun
from hushprompt.runs.identity import RunIdentity, from_json
from hushprompt.runs.records import ArmSummary
from hushprompt.words import counted

MISSING: Mapping[str, Any] = {
    "epsilon": None, "delta": math.nan, "audience": "", "local": math.nan, "neighbor": math.nan,
    "harmonic_mean": math.nan, "worst_client": math.nan, "calibration_error": math.nan, "seconds": math.nan,
    "num_rounds": 0, "per_client": [], "per_class": [],
}  # fmt: skip
"""What stands for an entry that an old summary lacks."""


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """Who has how many examples of which class."""

    class_names: Sequence[str]
    client_names: Sequence[str]
    train: np.ndarray
    """[k, c] training examples."""


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """Everything that a finished run has on record."""

    name: str
    """Of its folder, with as many parents as tell it from the other runs."""
    config: Mapping[str, Any]
    config_text: str
    arms: Sequence[ArmSummary]
    """The result table: references first, the run's own method last."""
    provenance: Mapping[str, str]
    rounds: Mapping[str, Sequence[Mapping[str, Any]]]
    """Records of each arm by its label, in order."""
    privacy: Mapping[str, Any] | None
    holdings: Holdings | None
    confusion: Mapping[str, Mapping[str, np.ndarray]]
    """[c, c] counts, true by predicted class, "local" and "neighbor", by the arm's label; empty in old runs."""
    audit: Mapping[str, Any] | None
    """What attacks on the run found; None where it was not audited."""
    identity: RunIdentity | None = None
    """What the run is by content; None in runs of older versions."""
    edited: Sequence[str] = ()
    """Which files were changed after the run ended, in words."""
    is_finished: bool = True
    """Whether every arm is trained and the summary, the last file of a run, is written."""

    @property
    def seed(self) -> int:
        """Root seed of the run."""
        return int(self.config.get("seed", 1))


@dataclass(frozen=True, kw_only=True)
class FoundRuns:
    """The runs at or below some paths."""

    runs: Sequence[FinishedRun]
    unfinished: Sequence[str]
    """Names of runs that have no summary yet."""
    notes: Sequence[str]
    """Sentences on sweeps that are not complete, and on files that were changed."""


@dataclass(frozen=True)
class _Source:
    """The texts of one run, wherever they lie."""

    path: tuple[str, ...]
    """Parts of a path that identifies the run."""
    where: str
    """What errors name."""
    packed: PackedRun | None = None

    def text(self, name: str) -> str | None:
        """Return the text of a file; None where there is none."""
        if self.packed is not None:
            return self.packed.files.get(name)
        path = Path(self.where, name)
        try:
            return path.read_text(encoding="utf-8") if path.exists() else None
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read ({error}).") from error

    def json(self, name: str) -> Any:
        """Return what a JSON file holds; None where there is none."""
        text = self.text(name)
        try:
            return None if text is None else records.renamed(json.loads(text))
        except ValueError as error:
            raise DataError(f"{self.where}/{name} is damaged: {error}.") from error

    def names(self, pattern: str) -> list[str]:
        """Return the files that match a pattern, sorted."""
        if self.packed is not None:
            return sorted(fnmatch.filter(self.packed.files, pattern))
        return sorted(path.relative_to(self.where).as_posix() for path in Path(self.where).glob(pattern))

    def has(self, name: str) -> bool:
        """Tell whether there is such a file."""
        return name in self.packed.files if self.packed is not None else Path(self.where, name).exists()


def find(paths: Sequence[Path]) -> FoundRuns:
    """Read every run at or below the given paths, each once, in the order of the paths and then of names.

    Args:
        paths: run folders, folders of them at any depth, and packed sweeps (`.jsonl.gz`).

    Raises:
        DataError: a path holds no run, no run is finished, or a file is damaged.
    """
    sources: dict[tuple[str, ...], _Source] = {}
    unfinished: list[str] = []
    notes = []
    for path in paths:
        found = list(_sources(path))
        if not found:
            raise DataError(
                f"{path} holds no run: there is no config.toml in it or below it. "
                "Give run folders, folders of them, or packed sweeps (.jsonl.gz)."
            )
        waiting = [source.path[-1] for source in found if not source.has("summary.json")]
        if waiting:
            notes.append(f"{path.name}: {len(waiting)} of {counted(len(found), 'run')} not finished.")
            unfinished += [name for name in waiting if name not in unfinished]
        for source in found:
            if source.has("summary.json"):
                sources.setdefault(source.path, source)
    if not sources:
        raise DataError(f"No run in {', '.join(map(str, paths))} is finished: none has a summary.json yet.")
    names = _short_names(list(sources))
    runs = [_read(source, name) for source, name in zip(sources.values(), names, strict=True)]
    notes += [f"{run.name}: {text}; `hushprompt verify` says what differs." for run in runs for text in run.edited]
    return FoundRuns(runs=runs, unfinished=unfinished, notes=notes)


def read(folder: Path) -> FinishedRun:
    """Read one run folder; an unfinished one has no arms yet.

    Raises:
        DataError: it is no run folder, or a file is damaged.
    """
    if not (folder / "config.toml").exists():
        raise DataError(f"{folder} is not a run folder: it has no config.toml.")
    return _read(_folder(folder), folder.resolve().name)


def _sources(path: Path) -> Iterator[_Source]:
    if (path / archive.FILE).is_file():
        path = path / archive.FILE
    if path.name.endswith(archive.SUFFIX):
        for packed in archive.iterate(path):
            yield _Source((str(path.resolve()), packed.folder), f"{path}, {packed.folder}", packed)
    else:
        yield from map(_folder, archive.run_folders(path))


def _folder(path: Path) -> _Source:
    return _Source(path.resolve().parts, str(path))


def _read(source: _Source, name: str) -> FinishedRun:
    text = source.text("config.toml") or ""
    try:
        config = _with_defaults(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{source.where}/config.toml is damaged: {error}.") from error
    is_finished = source.has("summary.json")
    summary = source.json("summary.json") or {}
    privacy = source.json("privacy.json")
    holdings = _holdings(source.json("partition.json"))
    return FinishedRun(
        name=name,
        config=config,
        config_text=text,
        arms=[_arm(arm, config, source.where) for arm in summary.get("arms", [])],
        provenance={str(key): str(value) for key, value in summary.get("provenance", {}).items()},
        rounds=_rounds(source),
        privacy=None if privacy is None else with_noise_source(privacy),
        audit=source.json("audit/audit.json"),
        holdings=holdings,
        confusion=_confusion(source, len(holdings.class_names)) if holdings else {},
        identity=from_json(summary["identity"], f"{source.where}/summary.json") if summary.get("identity") else None,
        edited=[] if source.packed else manifest.changes(Path(source.where), manifest.CLAIMS),
        is_finished=is_finished,
    )


def _with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Fill in settings that did not exist when a config was written; one that is not understood stays as it is."""
    try:
        return dict(to_plain(configs.parse(configs.as_stored(values))))
    except HushpromptError:
        return values


def _arm(values: Mapping[str, Any], config: Mapping[str, Any], where: str) -> ArmSummary:
    try:
        named = {**MISSING, "seed": config.get("seed", 1), "title": str(values["method"]), **values}
        return records.from_json(ArmSummary, named)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}/summary.json is damaged: an arm lacks something ({error}).") from error


def _rounds(source: _Source) -> dict[str, list[dict[str, Any]]]:
    """Read the round records by arm; none where the file is missing."""
    rounds: dict[str, list[dict[str, Any]]] = {}
    for index, line in enumerate((source.text("records.jsonl") or "").splitlines()):
        try:
            record = records.renamed(json.loads(line))
            rounds.setdefault(str(record["arm"]), []).append(record)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{source.where}/records.jsonl is damaged in line {index + 1}: {error}.") from error
    return rounds


def _holdings(values: Any) -> Holdings | None:
    """Read who holds what; None in old runs."""
    if values is None:
        return None
    return Holdings(
        class_names=[str(name) for name in values["class_names"]],
        client_names=[str(name) for name in values["client_names"]],
        train=records.dense_rows(values["train"], len(values["class_names"])),
    )


def _confusion(source: _Source, num_classes: int) -> dict[str, dict[str, np.ndarray]]:
    tables = {}
    for name in source.names("confusion/*.json"):
        values = source.json(name)
        tables[str(values["arm"])] = {whose: _square(values[whose], num_classes) for whose in ("local", "neighbor")}
    return tables


def _square(rows: list[dict[str, int]], num_classes: int) -> np.ndarray:
    """Return counts of all classes [c, c], where only the first ones, which are trained on, are in the file."""
    return records.dense_rows([*rows, *({} for _ in range(num_classes - len(rows)))], num_classes)


def _short_names(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """Name each run by the last part of its path, or by as many as tell it from the others."""
    depth = 1
    while len({path[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path[-depth:]) for path in paths]
