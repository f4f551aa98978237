"""The clients' responses to one request: each is used once, or left out with a reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hushprompt.deployment import wire
from hushprompt.deployment.agreement import Agreement
from hushprompt.deployment.envelope import Envelope
from hushprompt.deployment.gains import NOTHING, NoisyCounts
from hushprompt.deployment.transport import Failure, Report, attempt, reason_of
from hushprompt.errors import ProtocolError
from hushprompt.federation.payload import PayloadKind, num_bytes
from hushprompt.methods.base import Shared
from hushprompt.privacy.adaptive import ClipNorms


class Responses:
    """The responses to one request."""

    def __init__(
        self,
        agreement: Agreement,
        shared: Shared,
        norms: ClipNorms | None,
        request: Envelope,
        asked: Mapping[str, str],
        local_steps: int,
        report: Report,
        num_participants: int = 0,
    ) -> None:
        """Expect answers of clients `asked`, names by node; `report` hears at once of what is left out.

        Under secure aggregation the sizes of answers follow from how many take part in the step.
        """
        self.agreement, self.shared, self.norms, self.request = agreement, shared, norms, request
        self.asked, self.num_participants = dict(asked), num_participants
        self._report = report
        self.payload_kind = wire.payload_kind_of(agreement.arm, local_steps)
        self.failures: dict[str, str] = {}
        """Reason by client that took no part."""
        self.refused: set[str] = set()
        """Those of them that said so themselves: asked again, they would say the same."""
        self.tensors: dict[str, Mapping[str, Tensor]] = {}
        """What came, by client that took part."""
        self.bytes_up = self.header_bytes_up = 0
        self._messages: dict[int, Any] = {}

    @property
    def messages(self) -> dict[int, Any]:
        """Messages by client id, in their order, so that no sum depends on who was first."""
        return dict(sorted(self._messages.items()))

    @property
    def names(self) -> list[str]:
        """Who took part."""
        return [self.agreement.clients[client_id] for client_id in self.messages]

    @property
    def bytes_down(self) -> int:
        """Bytes of the payload that was sent, once to each client; shares that unmask a sum are none."""
        is_payload = self.request.kind != "unmask"
        return self.request.num_bytes * len({*self.asked.values()}) * is_payload

    @property
    def header_bytes_down(self) -> int:
        """Bytes of all else that was sent, once to each client."""
        return len(self.request.to_bytes()) * len({*self.asked.values()}) - self.bytes_down

    def take(self, node: str, answer: Envelope | Failure) -> None:
        """Use a response, or note why it cannot be used."""
        name = self.asked.get(node, "")
        used = attempt(lambda: self._use(name, answer))
        if isinstance(used, Failure):
            self.fail(name, node, used.reason)
            if name and isinstance(answer, Envelope) and answer.is_refusal:
                self.refused.add(name)
        elif isinstance(answer, Envelope):
            self.failures.pop(name, None)
            self.bytes_up += used
            self.header_bytes_up += len(answer.to_bytes()) - used

    def _use(self, name: str, answer: Envelope | Failure) -> int:
        """Use an answer, and return the bytes of its payload; any exception is a reason not to."""
        if not name:
            raise ProtocolError("An answer came from a node that was not asked.")
        client_id = self.agreement.clients.index(name)
        if client_id in self._messages:
            raise ProtocolError("A second answer came to the same question.")
        if isinstance(answer, Failure) or answer.kind != self.request.kind:
            raise ProtocolError(reason_of(answer))
        self._check_names(name, wire.check_declared(answer))
        self._messages[client_id] = self._message(client_id, answer)
        self.tensors[name] = answer.tensors
        return 0 if answer.kind == "unmask" else num_bytes(self._messages[client_id])

    def fail(self, name: str, node: str, reason: str) -> None:
        """Note why a client took no part, or why one thing that came was left out; the same again is no news."""
        if self.failures.get(name) == reason:
            return
        self._report(name, node, reason)
        if name and self.agreement.clients.index(name) not in self._messages:
            self.failures[name] = reason

    def close(self) -> None:
        """Note the clients that did not respond."""
        for node, name in self.asked.items():
            if name not in self.failures and self.agreement.clients.index(name) not in self._messages:
                self.fail(name, node, "no answer by the deadline")

    def _check_names(self, name: str, answer: Envelope) -> None:
        """Raise ProtocolError for an answer of somebody else, or to something else."""
        due = {"client": name, "agreement": self.agreement.digest}
        fields = ("round", "step", "rounds", "until", "context")
        due |= {key: self.request.meta[key] for key in fields if key in self.request.meta}
        if self.request.kind == "turn" and self.payload_kind is PayloadKind.SHARES:
            due["context"] = self.request.digest
        wrong = [key for key, value in due.items() if answer.meta.get(key) != value]
        if wrong:
            raise ProtocolError(f"An answer to something else came: {', '.join(wrong)} differ. Is it a replay?")

    def _message(self, client_id: int, answer: Envelope) -> Any:
        """Return the payload of a response, checked."""
        if self.request.kind == "finish" and self.agreement.run_config.evaluation.metrics_epsilon is not None:
            wire.check_like(answer.tensors, NOTHING, "An answer")
            counts = NoisyCounts(**answer.tensors)
            if not counts.num_images >= 1:
                raise ProtocolError("An answer counts right answers among no images.")
            return counts
        arm, meta, number = self.agreement.arm, self.request.meta, self.num_participants
        if self.request.kind == "unmask":
            wire.check_like(answer.tensors, wire.expected_unmask(number, len(meta["answered"])), "An answer")
            return answer.tensors["shares"].numpy()
        if self.request.kind != "turn":
            wire.check_like(answer.tensors, {}, "An answer")
            return None
        if self.payload_kind is PayloadKind.SHARES:
            return wire.read_masked(arm, self.shared, answer.tensors, number, counts=self.norms is not None)
        size = self.agreement.sizes[client_id]
        step = meta["step"]
        return wire.read_update(arm, self.shared, self.norms, size, step, self.payload_kind, answer.tensors)
