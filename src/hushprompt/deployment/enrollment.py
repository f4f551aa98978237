"""Enrollment: clients come online, say who they are and accept the plan, before anything is trained."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hushprompt.deployment.agreement import Agreement, Offer, check_version, version
from hushprompt.deployment.config import FederationConfig
from hushprompt.deployment.envelope import Envelope
from hushprompt.deployment.transport import Failure, MessageTransport, reason_of
from hushprompt.errors import ProtocolError

POLL_S = 1.0
"""Seconds from one look at who is online to the next."""
MAX_ANSWER_BYTES = 2**16
"""Of an answer without tensors."""
Report = Callable[[str, str, str], None]
"""Called with client (or ""), node and reason where somebody is refused, refuses, or does not answer."""


@dataclass(frozen=True)
class EnrolledClient:
    """A client that has joined."""

    node: str
    size: int
    """Its public number of training examples."""


class Enrollment:
    """Finds the clients of a federation among the nodes that a transport reaches."""

    def __init__(self, config: FederationConfig, offer: Offer, transport: MessageTransport, report: Report) -> None:
        """Start with nobody."""
        self.config, self.offer, self.transport, self.report = config, offer, transport, report
        self.members: dict[str, EnrolledClient] = {}
        self._refused: set[str] = set()

    def look(self, sizes: Mapping[str, int] | None = None) -> None:
        """Ask the nodes that are new to join; one that was refused is asked again after it went and came back.

        Args:
            sizes: of the clients that agreed on the plan, where there is one: nobody else joins any more.
        """
        online = set(self.transport.online())
        self._refused &= online
        known = {member.node for member in self.members.values()}
        new = sorted(online - known - self._refused)
        invitation = Envelope("join", {**version(), "offer": self.offer.to_json()})
        asked = dict.fromkeys(new, invitation)
        for node, answer in self.transport.ask(asked, self.config.join_deadline_s, MAX_ANSWER_BYTES) if new else ():
            try:
                name, member = self._joined(node, answer)
                if node not in asked or name not in (self.config.clients if sizes is None else sizes):
                    raise ProtocolError(f"{name!r} is none of the clients that may join.")
                if name in self.members and self.members[name].node in online:
                    raise ProtocolError(f"{name} joined already, from another node.")
                if sizes is not None and sizes[name] != member.size:
                    raise ProtocolError(
                        f"{name} agreed with {sizes[name]} training examples, now it has {member.size}."
                    )
                self.members[name] = member
            except ProtocolError as error:
                self._refused.add(node)
                self.report("", node, str(error))

    def wait(self, names: tuple[str, ...], sizes: Mapping[str, int] | None = None) -> None:
        """Look until all of `names` are there, or the deadline has passed.

        Raises:
            ProtocolError: fewer than `min_clients` are there then.
        """
        end = time.monotonic() + self.config.join_deadline_s
        while True:
            self.look(sizes)
            missing = [name for name in names if name not in self.members]
            left = end - time.monotonic()
            if not missing or left <= 0:
                break
            time.sleep(min(POLL_S, left))
        if len(names) - len(missing) < min(self.config.quorum, len(names)):
            raise ProtocolError(
                f"{len(names) - len(missing)} of {len(names)} clients joined within {self.config.join_deadline_s:g} s, "
                f"min_clients asks for {self.config.quorum}. Missing: {', '.join(missing)}; refusals.jsonl says who "
                "was refused, and why. Start again when they are there."
            )

    def agree(self) -> Agreement:
        """Propose the plan of those who joined; who refuses it stays out, and the rest get a new proposal.

        Raises:
            ConfigError: there is no such plan for these clients.
            ProtocolError: fewer than `min_clients` accept.
        """
        while True:
            names = tuple(name for name in self.config.clients if name in self.members)
            if len(names) < self.config.quorum:
                raise ProtocolError(
                    f"{len(names)} clients accept the plan, min_clients asks for {self.config.quorum}. refusals.jsonl "
                    "says who refused, and why."
                )
            sizes = tuple(self.members[name].size for name in names)
            agreement = Agreement(**self.offer.to_json(), clients=names, sizes=sizes)
            assert agreement.arm.plan.client_sizes == sizes  # raises here if there is no such plan
            proposal = Envelope("plan", {**version(), "agreement": agreement.to_json()})
            asked = {self.members[name].node: name for name in names}
            accepted = set()
            requests = dict.fromkeys(asked, proposal)
            for node, answer in self.transport.ask(requests, self.config.join_deadline_s, MAX_ANSWER_BYTES):
                if answer == Envelope("plan", {"agreement": agreement.digest}):
                    accepted.add(node)
                else:
                    self.report(asked.get(node, ""), node, reason_of(answer))
            if set(asked) <= accepted:
                return agreement
            for node, name in asked.items():
                if node not in accepted:
                    del self.members[name]
                    self._refused.add(node)

    def _joined(self, node: str, answer: Envelope | Failure) -> tuple[str, EnrolledClient]:
        """Read who a node says it is."""
        if isinstance(answer, Failure) or answer.kind != "join":
            raise ProtocolError(reason_of(answer))
        name, size = answer.meta.get("client"), answer.meta.get("num_examples")
        if not isinstance(name, str) or type(size) is not int or size < 1:
            raise ProtocolError("A client must say its name and its number of training examples.")
        check_version(answer.meta, "The server", name)
        if answer.meta.get("backbone") != self.offer.backbone:
            raise ProtocolError(f"{name} has another backbone than the federation.")
        return name, EnrolledClient(node, size)
