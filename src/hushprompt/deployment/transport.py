"""How the server reaches its clients: the protocol of a transport of messages, and the one within a process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from hushprompt.deployment.envelope import Envelope
from hushprompt.errors import ProtocolError

MAX_REQUEST_BYTES = 2**30
"""Longest request that a client reads."""


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


@runtime_checkable
class MessageTransport(Protocol):
    """The server's end of a transport. A node is whatever can be reached; `join` tells which client it is."""

    def online(self) -> list[str]:
        """Return the ids of the nodes that can be reached now. A node keeps its id when it comes back."""

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


class InProcess:
    """Delivers messages, as bytes, to clients in this process: for trials and tests."""

    def __init__(self, nodes: Mapping[str, Answerer], num_threads: int = 1) -> None:
        """Take the clients by node id; several threads ask them side by side."""
        self.nodes = dict(nodes)
        self._num_threads = num_threads

    def online(self) -> list[str]:
        """Return all nodes."""
        return list(self.nodes)

    def ask(
        self, requests: Mapping[str, Envelope], deadline_s: float, max_bytes: int
    ) -> Iterator[tuple[str, Envelope | Failure]]:
        """Ask node by node; an exception at a client is a Failure."""

        def ask_one(node: str) -> Envelope | Failure:
            try:
                return Envelope.from_bytes(self.deliver(node, requests[node].to_bytes()), max_bytes)
            except ProtocolError as error:
                return Failure(str(error))
            except Exception as error:  # whatever goes wrong at a client is that client's failure, not the server's
                return Failure(f"error at the client: {type(error).__name__}")

        with ThreadPoolExecutor(self._num_threads) as pool:
            yield from zip(requests, pool.map(ask_one, requests), strict=True)

    def deliver(self, node: str, data: bytes) -> bytes:
        """Deliver bytes to a client, and return its answer; tests override this to fail."""
        request = Envelope.from_bytes(data, MAX_REQUEST_BYTES)
        return self.nodes[node].answer(request).to_bytes()


def reason_of(answer: Envelope | Failure) -> str:
    """Return why there is no usable answer."""
    if isinstance(answer, Failure):
        return answer.reason
    return str(answer.meta.get("reason", ""))[:1000] if answer.is_refusal else f"answered with {answer.kind[:50]!r}"
