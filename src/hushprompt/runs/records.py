"""What a run leaves on disk, and its JSON form.

A run folder holds `config.toml`, `records.jsonl` (one line an arm and round), `summary.json`, `privacy.json`,
`partition.json` (who has how many examples of which class), `confusion/` (one file an arm), `checkpoint/` and
`prompts/`, `identity.json` (what the run is, by content) and `ledger.jsonl` (what was charged to whom, before it was
spent). With evaluation.metrics_epsilon there is no `confusion/`, and `metrics.jsonl` has the noisy counts that
accuracies come from. Every file is written whole or not at all; the `.jsonl` files only grow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from hushprompt import files
from hushprompt.config.schema import RunConfig
from hushprompt.errors import DataError, ResumeError
from hushprompt.evaluation.answers import AnswerScores

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

try:
    import fcntl
except ImportError:  # pragma: no cover - not on Windows; there two processes on one folder are not detected
    fcntl = None  # type: ignore[assignment]


T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """One arm's state after one round."""

    arm: str
    """Label of the arm, such as "dp_fpl, epsilon 8"."""
    round_index: int
    """Rounds done, from 1."""
    seconds: float
    """Wall seconds of the round."""
    loss: float
    """Mean training loss over clients. Not private: simulation only."""
    local: float
    """Mean accuracy on the clients' own test images, fraction. Read from test data, not from training data. NaN, as the
    three below, after a round that is not evaluated."""
    neighbor: float
    """Mean accuracy on the other clients' test images, fraction."""
    harmonic_mean: float
    worst_client: float
    anls: float | None = None
    """Of answers to questions, as the three below; None where examples have classes, or counts have noise."""
    neighbor_anls: float | None = None
    vqa_accuracy: float | None = None
    neighbor_vqa_accuracy: float | None = None
    bytes_up: int
    """Bytes that all clients sent in the round."""
    bytes_down: int
    """Bytes that all clients received in the round."""
    epsilon: dict[str, float]
    """Epsilon so far of each audience, at `delta`, of the client with the most rounds; inf without noise."""
    cohort_size: int | None = None
    """Clients of the round's cohort; None in records of version 0.1."""
    num_clients: int | None = None
    """Clients of the cohort that took part and did not fail; None in records of version 0.1."""
    delta: float | None = None
    """Of every epsilon; None in older records."""
    noise_source: str | None = None
    """Where noise came from: "seeded" makes every epsilon that of a simulation; None in older records."""

    @property
    def is_evaluated(self) -> bool:
        """Whether the prompts were scored after this round."""
        return not math.isnan(self.local)


@dataclass(frozen=True, kw_only=True)
class ArmSummary(AnswerScores):
    """One line of the result table; where examples have questions, accuracies are shares of exact matches."""

    arm: str
    method: str
    title: str
    """How a table calls the method."""
    epsilon: float | None
    """Proven epsilon of the budget's audience; None where nothing private was used, inf where no noise was added."""
    delta: float
    audience: str
    local: float
    neighbor: float
    harmonic_mean: float
    worst_client: float
    calibration_error: float
    seconds: float
    """Wall seconds of the arm's training and evaluation."""
    seed: int
    num_rounds: int
    per_client: list[dict[str, Any]]
    """Local and neighbor accuracy of every client."""
    per_class: list[float | None]
    """Accuracy of each class at its own client, in label order; None where a class has no image."""
    stopped: str | None = None
    """Why training ended before its last round; None if it did not."""
    num_last_rounds: int = 1
    """Rounds at the end whose scores are averaged to the ones above; 1 is the last round alone."""
    base: float | None = None
    """Mean accuracy on all images of base classes among base classes; None where all classes are trained on."""
    new: float | None = None
    """Mean accuracy on images of classes that nobody trained on, among those; None likewise."""
    base_new_harmonic_mean: float | None = None
    is_open: bool = False
    """Whether examples have questions, so that accuracies are shares of exact matches."""
    noise_source: str | None = None
    """Where noise came from: "seeded" makes epsilon that of a simulation; None in older records, or without epsilon."""

    def __post_init__(self) -> None:
        """Correct what older versions wrote: the harmonic mean with a score over nothing is no number."""
        if math.isnan(self.local) or math.isnan(self.neighbor):
            object.__setattr__(self, "harmonic_mean", math.nan)


def to_json(value: Any) -> Any:
    """Turn records into plain JSON values: infinity becomes "inf", NaN becomes null.

    >>> to_json({"epsilon": float("inf"), "loss": float("nan")})
    {'epsilon': 'inf', 'loss': None}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(entry) for entry in value]
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return "inf" if math.isinf(value) else value
    return value


def from_json(cls: type[T], values: Any) -> T:
    """Read a dataclass back from JSON values: "inf" becomes infinity, null becomes NaN where a number is due.

    Keys of older versions are known under their present names, and keys that `cls` does not have are passed over.

    Raises:
        ValueError: something is missing, or of another type than `cls` says.

    >>> @dataclass(frozen=True)
    ... class Spent:
    ...     epsilon: float
    >>> from_json(Spent, {"epsilon": "inf"})
    Spent(epsilon=inf)
    """
    if isinstance(values, Mapping):
        numbers = _numbers(cls)  # type: ignore[arg-type]  # classes are hashable
        values = {
            key: math.nan if value is None and key in numbers else value for key, value in renamed(values).items()
        }
    return msgspec.convert(values, type=cls, strict=False)  # not strict: "inf" is a number


@functools.cache
def _numbers(cls: type[Any]) -> frozenset[str]:
    """Return the names of the fields that are numbers; made once a class, since a run has many records."""
    return frozenset(name for name, hint in typing.get_type_hints(cls).items() if hint is float)


def read_tensors(path: Path, header: type[T]) -> tuple[T, dict[str, Tensor]]:
    """Read a file that `files.write_tensors` wrote: what it says of itself, as `header`, and its tensors by name.

    Raises:
        ValueError: it is missing, damaged, or of another kind.
    """
    from safetensors import SafetensorError, safe_open  # imported here: it needs torch, and most records are text

    try:
        with safe_open(path, framework="pt") as file:
            values = json.loads(file.metadata()["hushprompt"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, TypeError, KeyError) as error:
        raise ValueError(str(error)) from error
    return from_json(header, values), tensors


def write_json(path: Path, value: Any) -> None:
    """Write records as indented JSON, atomically."""
    files.write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return what `write_json` writes."""
    return json.dumps(to_json(value), indent=2) + "\n"


def write_compact_json(path: Path, value: Any) -> None:
    """Write records as JSON with one line a top-level entry, atomically: for tables that nobody reads line by line."""
    entries = (
        f"{json.dumps(key)}: {json.dumps(entry, separators=(',', ':'))}" for key, entry in to_json(value).items()
    )
    files.write_text(path, "{\n" + ",\n".join(entries) + "\n}\n")


def sparse_rows(table: np.ndarray) -> list[dict[str, int]]:
    """Return a table of counts [n, m] as one mapping a row, from column to count, zeros left out.

    >>> import numpy as np
    >>> sparse_rows(np.array([[0, 3], [0, 0]]))
    [{'1': 3}, {}]
    """
    return [{str(column): int(row[column]) for column in row.nonzero()[0]} for row in table]


def dense_rows(rows: Sequence[Mapping[str, int]], num_columns: int) -> np.ndarray:
    """Return back the table of counts [n, num_columns] that `sparse_rows` wrote.

    Raises:
        DataError: a column is not one of 0 to num_columns - 1.
    """
    import numpy as np  # reading a summary needs none

    table = np.zeros((len(rows), num_columns), dtype=np.int64)
    for index, row in enumerate(rows):
        for column, count in row.items():
            if not (column.isdecimal() and int(column) < num_columns):
                raise DataError(f"A table of counts has the column {column!r}, but only {num_columns} columns.")
            table[index, int(column)] = count
    return table


RENAMED = {
    "row": "arm",
    "rows": "arms",
    "several_rows": "several_arms",
    "row_index": "arm_index",
    "row_seconds": "arm_seconds",
    "finished_rows": "finished_arms",
}
"""Keys of records that older versions wrote under another name."""


def renamed(value: Any) -> Any:
    """Return plain JSON values with the keys of older versions under their present names.

    >>> renamed({"rows": [{"row": "dp_fpl", "epsilon": 8.0}]})
    {'arms': [{'arm': 'dp_fpl', 'epsilon': 8.0}]}
    """
    if isinstance(value, dict):
        return {RENAMED.get(key, key): renamed(entry) for key, entry in value.items()}
    return [renamed(entry) for entry in value] if isinstance(value, list) else value


def read_record(path: Path) -> Any:
    """Read a summary, privacy record, confusion table or audit of a run folder, of this version or an older one.

    Raises:
        DataError: it is missing or damaged.
    """
    return renamed(read_json(path))


def read_json(path: Path) -> Any:
    """Read a JSON file of a run folder.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Is its folder a finished run?") from error
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}.") from error


def recorded(folder: Path) -> list[RoundRecord]:
    """Read the rounds of a run that are on the disk, in order."""
    path = folder / "records.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [from_json(RoundRecord, json.loads(line)) for line in lines]


def append_record(path: Path, record: RoundRecord) -> int:
    """Append one line and give the file's new size in bytes."""
    return files.append_line(path, json.dumps(to_json(record)))


def truncate_records(path: Path, size: int) -> None:
    """Cut `records.jsonl` back to what a checkpoint knows of; lines written after it will be written again.

    Raises:
        ResumeError: the file is shorter than the checkpoint says.
    """
    actual = path.stat().st_size if path.exists() else 0
    if actual < size:
        raise ResumeError(
            f"{path} has {actual} bytes but the checkpoint counts {size}: records were lost. Start a new run."
        )
    if path.exists():
        os.truncate(path, size)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder for one process; the lock goes when the process does, however it ends.

    Raises:
        ResumeError: another process has it.
    """
    if fcntl is None:  # pragma: no cover
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ResumeError(f"Another process is writing to {folder}. Wait for it, or stop it first.") from error
        yield
    finally:
        os.close(handle)


def is_locked(folder: Path) -> bool:
    """Whether a process holds a run folder."""
    try:
        with locked(folder):
            return False
    except ResumeError:
        return True
    except FileNotFoundError:
        return False


def provenance(config: RunConfig) -> dict[str, str]:
    """Return what made a result, so that it can be made again."""
    # Imported late: reading a run needs none of them.
    import platform

    import numpy as np
    import torch

    from hushprompt.extras import version_of

    return {
        "hushprompt": version_of("hushprompt"),
        "config_identity": config.identity(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "dp_accounting": version_of("dp-accounting"),
    }
