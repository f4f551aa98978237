"""All state of a run on disk, so that one rename makes a checkpoint and a round writes no more than it changed.

    checkpoint/state.safetensors            what is shared, and progress as JSON metadata: its rename is the commit
    checkpoint/personal-2-00017.safetensors  personal states that round 17 of arm 2 changed

Personal states lie in segments, a log: the newest segment that has a client has its state, and a client in none is as
it was before training. `state.safetensors` names the segments that count, so one that a kill left behind is ignored.
When the log holds more than twice as many states as there are clients in it, all go into one new segment: that costs
a round, on average, no more than writing its own clients again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hushprompt import files
from hushprompt.errors import ResumeError
from hushprompt.runs.records import read_tensors
from hushprompt.runs.state import State, flatten, restore

FILE = "checkpoint/state.safetensors"
SEGMENT = "personal-*.safetensors"
NORMS = "clip_norms."
"""What the names of adaptive clip norms begin with."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run has come."""

    config_identity: str
    """Identity of the config that the state belongs to."""
    arm_index: int
    """Arm in training; arms before it are finished."""
    num_rounds_done: int
    """Rounds done in that arm."""
    arm_seconds: float
    """Wall seconds spent on that arm so far."""
    records_size: int
    """Bytes of `records.jsonl` that belong to this state."""
    finished_arms: list[dict[str, Any]]
    """JSON form of the finished arms' summaries."""
    last_scores: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Plain form of that arm's scores that enter the reported ones, so far."""
    segments: list[str] = dataclasses.field(default_factory=list)
    """Names of the files with personal states, oldest first."""
    has_started: bool = False
    """Whether the release that the arm starts from is made, where it has one: the state then follows from it."""

    @property
    def is_under_way(self) -> bool:
        """Whether the state is of the arm in training, and not of the one before."""
        return self.has_started or self.num_rounds_done > 0


class Checkpoints:
    """Writes the checkpoints of one run."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        """Go on after `progress`, which is that of the folder's checkpoint or of a fresh run."""
        self._folder = folder / "checkpoint"
        self._segments = list(progress.segments)
        self._named = set(progress.segments)
        """Segments that the checkpoint on disk counts."""
        self._arm_index = int(self._segments[0].split("-")[1]) if self._segments else progress.arm_index
        """Arm whose personal states the segments hold."""
        self._num_stored = 0
        """States in the segments, superseded ones included."""
        self._clients: set[int] = set()
        for name in self._segments:
            clients = {_client_of(key) for key in _keys(self._folder / name)}
            self._num_stored += len(clients)
            self._clients |= clients

    def stage(self, state: State, progress: Progress, changed: Collection[int]) -> None:
        """Write the personal states that a round changed; they count when `save` has named them.

        Args:
            state: after the round.
            progress: arm and rounds done; nothing else of it matters here.
            changed: clients whose personal state may differ from the last save.
        """
        if progress.is_under_way and progress.arm_index != self._arm_index:  # the log of a finished arm ends here
            self._arm_index, self._segments, self._num_stored, self._clients = progress.arm_index, [], 0, set()
        if any(flatten(state.personal[client_id]) for client_id in changed):
            self._append(state, progress, set(changed))

    def save(self, state: State, progress: Progress, changed: Collection[int] = ()) -> Progress:
        """Write state and progress; whoever reads later finds the old checkpoint or the new one.

        Args:
            state: after a round, or of an arm that is finished.
            progress: what is known of it; its `segments` are filled in here.
            changed: clients whose personal state may differ from the last save, those that were staged aside.

        Returns:
            The progress as it was written.
        """
        self.stage(state, progress, changed)
        progress = dataclasses.replace(progress, segments=list(self._segments))
        metadata = json.dumps(dataclasses.asdict(progress))
        norms = {} if state.norms is None else flatten(state.norms, NORMS)
        files.write_tensors(self._folder / Path(FILE).name, {**flatten(state.shared), **norms}, metadata)
        if not self._named <= set(self._segments):
            self._tidy()
        self._named = set(self._segments)
        return progress

    def _append(self, state: State, progress: Progress, written: set[int]) -> None:
        """Add a segment with some clients' states, or with all if the log has grown too long."""
        self._clients |= written
        if self._num_stored + len(written) > 2 * len(self._clients):
            self._segments, self._num_stored, written = [], 0, self._clients
        tensors: dict[str, Tensor] = {}
        for client_id in sorted(written):
            tensors.update(flatten(state.personal[client_id], f"{client_id}."))
        name = f"personal-{progress.arm_index}-{progress.num_rounds_done:05d}.safetensors"
        files.write_tensors(self._folder / name, tensors, "personal states")
        self._segments = [*self._segments, name]
        self._num_stored += len(written)

    def _tidy(self) -> None:
        """Remove the segments that no longer count, and those that a kill left behind."""
        for path in self._folder.glob(SEGMENT):
            if path.name not in self._segments:
                path.unlink()


def load_progress(folder: Path) -> Progress | None:
    """Read how far a run has come; None if it has no checkpoint yet.

    Raises:
        ResumeError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return read_tensors(path, Progress)[0]
    except ValueError as error:
        raise ResumeError(f"The checkpoint {path} is damaged ({error}). Start a new run.") from error


def load_state(folder: Path, template: State) -> State:
    """Read the state into the structure of `template`, a state of the same method, model and clients before training.

    Raises:
        ResumeError: tensors are missing or of another shape.
    """
    path = folder / FILE
    progress = load_progress(folder)
    assert progress is not None, "there is a checkpoint"
    tensors = _read(path)
    norms, own = template.norms, {key: tensor for key, tensor in tensors.items() if key.startswith(NORMS)}
    if norms is not None:
        norms = _fitting(path, norms, {key.removeprefix(NORMS): tensor for key, tensor in own.items()})
    shared = _fitting(path, template.shared, {key: tensor for key, tensor in tensors.items() if key not in own})
    personal, waiting = list(template.personal), set(range(len(template.personal)))
    for name in reversed(progress.segments):
        segment = folder / "checkpoint" / name
        keys = _keys(segment)
        clients = {_client_of(key) for key in keys}
        if not clients <= set(range(len(personal))):
            raise _misfit(segment)
        newest = clients & waiting
        by_client: dict[int, dict[str, Tensor]] = {client_id: {} for client_id in newest}
        for key, tensor in _read(segment, [key for key in keys if _client_of(key) in newest]).items():
            by_client[_client_of(key)][key.partition(".")[2]] = tensor
        for client_id, tensors in by_client.items():
            personal[client_id] = _fitting(segment, personal[client_id], tensors)
        waiting -= clients
    return dataclasses.replace(template, shared=shared, personal=tuple(personal), norms=norms)


def _fitting(path: Path, template: Any, tensors: dict[str, Tensor]) -> Any:
    """Rebuild `template`, if the tensors are its own."""
    expected = {name: tensor.shape for name, tensor in flatten(template).items()}
    if {name: tensor.shape for name, tensor in tensors.items()} != expected:
        raise _misfit(path)
    return restore(template, tensors)


def _misfit(path: Path) -> ResumeError:
    """Say that a checkpoint is of something else."""
    return ResumeError(f"The checkpoint {path} does not fit this method, model or number of clients. Start a new run.")


def _keys(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise ResumeError(f"The checkpoint {path} is damaged ({error}). Start a new run.") from error


def _read(path: Path, keys: Collection[str] | None = None) -> dict[str, Tensor]:
    """Read some tensors of a file; None: all."""
    wanted = _keys(path) if keys is None else keys
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in wanted}


def _client_of(key: str) -> int:
    """Return the client of a tensor's name in a segment, such as `3.context`."""
    return int(key.partition(".")[0])
