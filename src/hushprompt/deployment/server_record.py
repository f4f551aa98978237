"""What the server writes of each round. Imports nothing heavy: whoever looks at a run reads it too."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hushprompt import files
from hushprompt.runs.records import RoundRecord, from_json

AGREEMENT = "agreement.json"
"""File of what was agreed on, at the server and at every client."""


CHECKED = "check.json"
"""File of what the clients last said of a plan that was only looked at."""


@dataclass(frozen=True, kw_only=True)
class CheckOutcome:
    """What the clients say of a plan before anything is trained."""

    sizes: dict[str, int] = field(default_factory=dict)
    """Public training sizes of those that joined."""
    refusals: dict[str, str] = field(default_factory=dict)
    """Why not, by client: it did not join, or does not accept the plan."""
    guarantees: list[dict[str, Any]] = field(default_factory=list)
    """What the epsilons of the whole run would mean: arms of a privacy record."""
    problem: str = "The clients were not asked."
    """Why there is no such plan; empty if there is."""
    state: Any = None
    """How the SuperLink's run for it ended."""

    @property
    def is_accepted(self) -> bool:
        """Whether all clients accept the plan."""
        return not self.problem and not self.refusals


@dataclass(frozen=True, kw_only=True)
class ServerRecord(RoundRecord):
    """A round as the server sees it: no losses, no scores."""

    asked: list[str]
    """Clients that a message was sent to."""
    took_part: list[str]
    """Clients of which an answer was used, in any step of the round."""
    failures: dict[str, str]
    """Last reason by client, where an answer was missing or not used."""
    header_bytes_up: int
    """Bytes around the tensors of all answers."""
    header_bytes_down: int
    """Bytes around the tensors of all requests."""
    left_out_steps: list[int] = field(default_factory=list)
    """Steps that were charged and that the run went on without, from 1: too few clients answered, and somebody said
    so (`run --leave-step`)."""
    is_late: bool = False
    """Whether it is no round, but the part of a client that joined after the release."""


def rounds(folder: Path) -> list[ServerRecord]:
    """Read the rounds of a server's run folder that are done; none if there is no such folder."""
    return [from_json(ServerRecord, json.loads(line)) for line in files.whole_lines_of(folder / "records.jsonl")]
