"""Flower's Grid as the transport of the server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from hushprompt.deployment.envelope import Envelope
from hushprompt.deployment.flower import messages
from hushprompt.deployment.transport import Failure, attempt
from hushprompt.errors import ProtocolError

REASONS = {
    ErrorCode.MESSAGE_UNAVAILABLE: "no answer by the deadline",  # SuperLink drops a message then
    ErrorCode.NODE_UNAVAILABLE: "its connection is lost",
}
"""Flower's errors that say what happened, in plain words."""
POLL_S = 0.5
"""Seconds between two looks for answers; Flower's own `send_and_receive` looks every three."""


class GridTransport:
    """Reaches clients by the ids that Flower's SuperLink gives their keys: the same id whenever a client comes back."""

    def __init__(
        self,
        grid: Grid,
        names: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Hold the grid.

        Args:
            grid: of the run.
            names: client names by node id: nobody else is spoken to, and nobody may say another name. None takes
                every node that SuperLink lets in, under the name that it gives itself.
            clock: gives seconds.
            sleep: waits so many seconds.
        """
        self._grid, self._names, self._clock, self._sleep = grid, names, clock, sleep

    def online(self) -> list[str]:
        """Return the nodes whose connection is up."""
        nodes = map(str, self._grid.get_node_ids())
        return sorted(node for node in nodes if self._names is None or node in self._names)

    def name_of(self, node: str) -> str:
        """Return the client whose key a node has."""
        return "" if self._names is None else self._names.get(node, "")

    def ask(
        self, requests: Mapping[str, Envelope], deadline_s: float, max_bytes: int
    ) -> Iterator[tuple[str, Envelope | Failure]]:
        """Send each node its message, and yield answers as they arrive.

        A message is matched by the request that it answers: Flower's own errors come from the SuperLink's node id.
        """
        end = self._clock() + deadline_s
        # A request ends with the deadline: a client that was away must not spend its budget on what nobody waits for.
        outgoing = [messages.request(envelope, int(node), deadline_s) for node, envelope in requests.items()]
        waiting: dict[str, str] = {}
        for node, message_id in zip(requests, self._grid.push_messages(outgoing), strict=True):
            if message_id:
                waiting[message_id] = node
            else:
                yield node, Failure("the message could not be sent: SuperLink did not take it")
        while waiting:
            arrived = False
            for message_id, node in list(waiting.items()):
                answer = self._pull(message_id, node, max_bytes)
                if answer is not None:
                    arrived = True
                    del waiting[message_id]
                    yield node, answer
            if self._clock() >= end:
                break
            if waiting and not arrived:
                self._sleep(min(POLL_S, max(0.0, end - self._clock())))
        for node in waiting.values():
            yield node, Failure("no answer by the deadline")

    def _pull(self, message_id: str, node: str, max_bytes: int) -> Envelope | Failure | None:
        """Return what a node answered to a message; None: nothing yet.

        Messages are pulled one by one: Flower unpacks what a node sent, and where that fails it is this node's failure.
        """
        arrived = attempt(lambda: list(self._grid.pull_messages([message_id])))
        if isinstance(arrived, Failure):
            return arrived
        replies = [message for message in arrived if message.metadata.reply_to_message_id == message_id]
        return attempt(lambda: self._read(node, replies[0], max_bytes)) if replies else None

    def _read(self, node: str, message: Message, max_bytes: int) -> Envelope:
        """Return what a node answered; ProtocolError if it is no answer of that node."""
        if message.has_error():
            told = f"Flower error {message.error.code}: {message.error.reason}"
            raise ProtocolError(REASONS.get(message.error.code, told))
        if str(message.metadata.src_node_id) != node:
            raise ProtocolError(f"the answer came from another node, {message.metadata.src_node_id}")
        answer = messages.read(message, max_bytes)
        if self._names is not None and answer.meta.get("client", self._names[node]) != self._names[node]:
            raise ProtocolError(
                f"it calls itself {answer.meta['client']!r}, but its key is that of {self._names[node]!r}"
            )
        return answer
