"""All state of a run in one file, so that one rename makes a checkpoint: tensors, and progress as JSON metadata."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hushprompt import files
from hushprompt.errors import ResumeError

FILE = "checkpoint/state.safetensors"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run has come."""

    config_identity: str
    """Identity of the config that the state belongs to."""
    row_index: int
    """Row in training; rows before it are finished."""
    num_rounds_done: int
    """Rounds done in that row."""
    row_seconds: float
    """Wall seconds spent on that row so far."""
    records_size: int
    """Bytes of `records.jsonl` that belong to this state."""
    finished_rows: list[dict[str, Any]]
    """JSON form of the finished rows' summaries."""


def save(folder: Path, state: Any, progress: Progress) -> None:
    """Write state and progress; whoever reads later finds the old pair or the new one."""
    files.write_tensors(folder / FILE, flatten(state), json.dumps(dataclasses.asdict(progress)))


def load_progress(folder: Path) -> Progress | None:
    """Read how far a run has come; None if it has no checkpoint yet.

    Raises:
        ResumeError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return Progress(**json.loads(file.metadata()["hushprompt"]))
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise ResumeError(f"The checkpoint {path} is damaged ({error}). Start a new run.") from error


def load_state(folder: Path, template: Any) -> Any:
    """Read the state into the structure of `template`, a state of the same method, model and clients.

    Raises:
        ResumeError: tensors are missing or of another shape.
    """
    path = folder / FILE
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    expected = flatten(template)
    if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in expected.items()}:
        raise ResumeError(
            f"The checkpoint {path} does not fit this method, model or number of clients. Start a new run."
        )
    return _restore(template, tensors, "")


def flatten(state: Any, prefix: str = "") -> dict[str, Tensor]:
    """Name every tensor in nested frozen dataclasses and tuples: `personal.3.context`."""
    if isinstance(state, Tensor):
        return {prefix.rstrip("."): state}
    named: dict[str, Tensor] = {}
    for name, child in _children(state):
        named.update(flatten(child, f"{prefix}{name}."))
    return named


def _children(state: Any) -> list[tuple[str, Any]]:
    """Give names and values one level down."""
    if isinstance(state, tuple):
        return [(str(index), child) for index, child in enumerate(state)]
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        return [(f.name, getattr(state, f.name)) for f in dataclasses.fields(state)]
    raise TypeError(f"A state is made of frozen dataclasses, tuples and tensors, got {type(state).__qualname__}.")


def _restore(template: Any, tensors: dict[str, Tensor], prefix: str) -> Any:
    """Rebuild `template` with the tensors of the same names."""
    if isinstance(template, Tensor):
        return tensors[prefix.rstrip(".")].to(template.device)
    children = {name: _restore(child, tensors, f"{prefix}{name}.") for name, child in _children(template)}
    return tuple(children.values()) if isinstance(template, tuple) else dataclasses.replace(template, **children)
