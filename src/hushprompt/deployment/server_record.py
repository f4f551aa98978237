"""What the server writes of each round. Imports nothing heavy: whoever looks at a run reads it too."""

from __future__ import annotations

from dataclasses import dataclass

from hushprompt.runs.records import RoundRecord

AGREEMENT = "agreement.json"
"""File of what was agreed on, at the server and at every client."""


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
