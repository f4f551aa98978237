"""The client's end of a federation: it answers one message at a time, and nothing it did not mean to give leaves it."""

from __future__ import annotations

from hushprompt.deployment.config import ClientConfig
from hushprompt.deployment.envelope import Envelope, refusal


class Site:
    """One client. All that it knows lies in its store, so it may be a new process for every message."""

    def __init__(self, config: ClientConfig) -> None:
        """Take what `client.toml` says; data and model are loaded when a message needs them, once."""
        self.config = config

    def answer(self, request: Envelope) -> Envelope:
        """Answer one message; what it may not or cannot do is a refusal, and a line in `refusals.jsonl`.

        What a turn releases is charged to the client's own ledger, on disk, before it is taken; the new personal state
        and the answer are on disk, in one file, before the answer leaves. The same turn asked again gives the same
        answer, bit for bit, and is not charged again.
        """
        return refusal(f"{request.kind} is not known here")


def open_site(config: ClientConfig) -> Site:
    """Open a client's end.

    Raises:
        ResumeError: the store cannot be made.
    """
    return Site(config)
