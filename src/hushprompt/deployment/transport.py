"""How the server reaches its clients: the protocol of a transport of messages, and what every transport shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from hushprompt.deployment.envelope import Envelope
from hushprompt.errors import ProtocolError

T = TypeVar("T")
Report = Callable[[str, str, str], None]
"""Called with client (or ""), node and reason where somebody is refused, refuses, or does not answer."""
MAX_REQUEST_BYTES = 2**30
"""Longest request that a client reads."""
MAX_REASON = 1000
"""Characters of a text from elsewhere that are kept."""


@dataclass(frozen=True)
class Failure:
    """No answer that could be read."""

    reason: str
    """No answer by the deadline, node gone, error in the client's process, or what is wrong with the bytes."""


@runtime_checkable
class Answerer(Protocol):
    """What a transport asks of a client; `ClientNode` is one."""

    def answer(self, request: Envelope) -> Envelope:
        """Answer one message."""

    def refuse(self, kind: str, why: str) -> Envelope:
        """Write down that a message could not be read, and return the refusal."""


@runtime_checkable
class MessageTransport(Protocol):
    """The server's end of a transport. A node is whatever can be reached; `join` tells which client it is."""

    def online(self) -> list[str]:
        """Return the ids of the nodes that can be reached now. A node keeps its id when it comes back."""

    def name_of(self, node: str) -> str:
        """Return the client that a node is by its key; empty where keys do not say."""

    def ask(
        self, requests: Mapping[str, Envelope], deadline_s: float, max_bytes: int
    ) -> Iterator[tuple[str, Envelope | Failure]]:
        """Send each node its message, and yield answers as they arrive, with the id of the node that sent each.

        Ends after the deadline at the latest. A node without an answer by then gives a Failure, or nothing. An answer
        to another request never comes out of here; what comes twice, or from a node that was not asked, may: whoever
        asks checks that.

        Args:
            requests: by node id.
            deadline_s: seconds to wait for all of them.
            max_bytes: a longer answer is a Failure.
        """


def answer_bytes(site: Answerer, data: bytes) -> Envelope:
    """Have a client answer what arrived; what cannot be read is refused, and written down like every refusal."""
    try:
        request = Envelope.from_bytes(data, MAX_REQUEST_BYTES)
    except ProtocolError as error:
        return site.refuse("message", str(error))
    return site.answer(request)


def attempt(read: Callable[[], T]) -> T | Failure:
    """Read one answer; whatever goes wrong with it is that client's failure, and ends nothing else."""
    try:
        return read()
    except ProtocolError as error:
        return Failure(str(error))
    except Exception as error:  # a client may send anything, and so anything may be raised
        return Failure(f"error at the client: {type(error).__name__}")


def reason_of(answer: Envelope | Failure) -> str:
    """Return why there is no usable answer."""
    if isinstance(answer, Failure):
        return answer.reason
    return str(answer.meta.get("reason", "")) if answer.is_refusal else f"answered with {answer.kind!r}"


def plain(text: str) -> str:
    r"""Return a text from elsewhere as one short line that a terminal shows as it is.

    >>> plain("no\nmore \x1b[31mred")
    'no more ?[31mred'
    """
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split())[:MAX_REASON])
