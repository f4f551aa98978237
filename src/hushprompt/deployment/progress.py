"""How far the server is: shared state and counts in one file, so that one rename makes a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hushprompt import files
from hushprompt.deployment.responses import Responses
from hushprompt.deployment.wire import check_like
from hushprompt.errors import ProtocolError, ResumeError
from hushprompt.methods.base import Shared
from hushprompt.privacy.adaptive import ClipNorms
from hushprompt.runs.records import read_tensors
from hushprompt.runs.state import fields_of, flatten, restore

FILE = "checkpoint/state.safetensors"


@dataclass(frozen=True, kw_only=True)
class RoundTally:
    """Counts of a round that may not be over."""

    asked: list[str] = field(default_factory=list)
    took_part: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    header_bytes_up: int = 0
    header_bytes_down: int = 0
    seconds: float = 0.0
    left_out_steps: list[int] = field(default_factory=list)
    """Steps that the run went on without, from 1."""

    def plus(self, seconds: float, *exchanges: Responses) -> RoundTally:
        """Return the counts with what came of one more step: one exchange, or two where a sum is unmasked."""
        tally = dataclasses.replace(self, seconds=self.seconds + seconds)
        for each in exchanges:
            tally = dataclasses.replace(
                tally,
                asked=sorted({*tally.asked, *each.asked.values()}),
                took_part=sorted({*tally.took_part, *each.names}),
                failures={**tally.failures, **each.failures},
                bytes_up=tally.bytes_up + each.bytes_up,
                bytes_down=tally.bytes_down + each.bytes_down,
                header_bytes_up=tally.header_bytes_up + each.header_bytes_up,
                header_bytes_down=tally.header_bytes_down + each.header_bytes_down,
            )
        return tally


@dataclass(frozen=True, kw_only=True)
class ServerProgress:
    """How far the server has come: the plain values of its state."""

    round_index: int = 0
    """Rounds done."""
    step: int = 0
    """Steps done of the next round."""
    records_size: int = 0
    """Bytes of `records.jsonl` that belong to this state."""
    tally: RoundTally = field(default_factory=RoundTally)
    late: list[str] = field(default_factory=list)
    """Clients that joined after the release, and whose part is in the shared state."""


@dataclass(frozen=True, kw_only=True)
class ServerState(ServerProgress):
    """All that the server keeps between two exchanges with its clients."""

    shared: Shared
    norms: ClipNorms | None
    """Clip norms where they are adaptive; the local ones are kept by the clients, and stay as they began."""


def save_state(folder: Path, state: ServerState) -> None:
    """Write the state; whoever reads later finds the old one or this one."""
    header = dataclasses.asdict(ServerProgress(**fields_of(ServerProgress, state)))
    files.write_tensors(folder / FILE, _tensors(state), json.dumps(header))


def load_state(folder: Path, start: ServerState) -> ServerState:
    """Read the state into the structure of `start`, the state before training, which it is if there is none.

    Raises:
        ResumeError: it is damaged, or of another method or model.
    """
    path = folder / FILE
    if not path.exists():
        return start
    try:
        header, tensors = read_tensors(path, ServerProgress)
        check_like(tensors, _tensors(start), str(path))
        parts: dict[str, dict[str, Any]] = {"shared": {}, "norms": {}}
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = tensor
        norms = None if start.norms is None else restore(start.norms, parts["norms"])
        return ServerState(
            shared=restore(start.shared, parts["shared"]), norms=norms, **fields_of(ServerProgress, header)
        )
    except (ProtocolError, ValueError, KeyError) as error:
        raise ResumeError(f"The checkpoint {path} is damaged ({error}). Start a new run.") from error


def _tensors(state: ServerState) -> dict[str, Any]:
    norms = {} if state.norms is None else flatten(state.norms, "norms.")
    return {**flatten(state.shared, "shared."), **norms}
