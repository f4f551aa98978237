"""Enrollment: clients come online, say who they are and accept the plan, before anything is trained."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from hushprompt.deployment.agreement import Agreement, Offer, check_version, version
from hushprompt.deployment.config import FederationConfig
from hushprompt.deployment.envelope import Envelope
from hushprompt.deployment.transport import Failure, MessageTransport, Report, attempt, reason_of
from hushprompt.deployment.wire import check_declared
from hushprompt.errors import ConfigError, ProtocolError
from hushprompt.words import counted

POLL_S = 1.0
"""Seconds from one look at who is online to the next."""
HEX = r"(?:[0-9a-f]{2}){1,128}"
"""Bytes of a key or a signature, as text."""
MAX_ANSWER_BYTES = 2**16
"""Of an answer without tensors."""


@dataclass(frozen=True)
class EnrolledClient:
    """A client that has joined."""

    node: str
    size: int
    """Its public number of training examples, or of groups where these are the unit."""
    key: str = ""
    """With noise shares, its public run key in hex."""
    signature: str = ""
    """Of its claim to that key, by the key that its owner pinned elsewhere."""


class Enrollment:
    """Finds the clients of a federation among the nodes that a transport reaches."""

    def __init__(self, config: FederationConfig, offer: Offer, transport: MessageTransport, report: Report) -> None:
        self.config, self.offer, self.transport, self.report = config, offer, transport, report
        self.has_shares = offer.run_config.privacy.noise_at == "shares"
        self.members: dict[str, EnrolledClient] = {}
        self.refusals: dict[str, str] = {}
        """Reason by client that may not join, as far as its key says who it is."""
        self.late: frozenset[str] = frozenset()
        """Clients that may join though all others agreed on the plan already."""
        self._refused: set[str] = set()

    def look(self, begun: Agreement | None = None) -> None:
        """Ask the nodes that are new to join; one that was refused is asked again after it went and came back.

        Args:
            begun: the plan, where there is one: nobody but its clients joins any more.
        """
        online = set(self.transport.online())
        self._refused &= online
        known = {member.node for member in self.members.values()}
        new = sorted(online - known - self._refused)
        invitation = Envelope("join", {**version(), "offer": self.offer.to_json()})
        asked = dict.fromkeys(new, invitation)
        for node, answer in self.transport.ask(asked, self.config.join_deadline_s, MAX_ANSWER_BYTES) if new else ():
            joined = attempt(lambda: self._joined(node, answer, asked, online, begun))  # noqa: B023 - called now
            if isinstance(joined, Failure):
                self._refused.add(node)
                name = self.transport.name_of(node)
                self.report(name, node, joined.reason)
                if name and isinstance(answer, Envelope):  # not where only the connection failed
                    self.refusals[name] = joined.reason
            else:
                self.members[joined[0]] = joined[1]
                self.refusals.pop(joined[0], None)

    def admit(self, names: Collection[str]) -> None:
        """Let these join late; who was refused is asked again."""
        self.late = frozenset(names)
        self._refused.clear()

    def wait(self, names: tuple[str, ...], begun: Agreement | None = None) -> None:
        """Look until all of `names` are there, or the deadline has passed.

        Raises:
            ProtocolError: fewer than `min_clients` are there then, or than a plan with noise shares needs that has
                begun.
        """
        missing, least = self.missing(names, begun), min(self.config.quorum, len(names))
        if begun is not None and self.has_shares:
            least = max(self.config.min_clients, begun.arm.plan.terms().least)
        if len(names) - len(missing) < least:
            raise ProtocolError(
                f"{len(names) - len(missing)} of {counted(len(names), 'client')} joined within "
                f"{self.config.join_deadline_s:g} s, and {least} are needed. Missing: "
                f"{', '.join(missing)}; refusals.jsonl says who was refused, and why. Start again when they are there."
            )

    def missing(self, names: tuple[str, ...], begun: Agreement | None = None) -> list[str]:
        """Look until all of `names` are there or were refused, or the deadline has passed; return who is missing."""
        end = time.monotonic() + self.config.join_deadline_s
        while True:
            self.look(begun)
            missing = [name for name in names if name not in self.members]
            left = end - time.monotonic()
            if set(missing) <= self.refusals.keys() or left <= 0:
                return missing
            time.sleep(min(POLL_S, left))

    def agree(self) -> Agreement:
        """Propose the plan of those who joined; who refuses it stays out, and the rest get a new proposal.

        Raises:
            ConfigError: there is no such plan for these clients.
            ProtocolError: fewer than `min_clients` accept.
        """
        while True:
            if len(self.members) < self.config.quorum:
                raise ProtocolError(
                    f"{counted(len(self.members), 'client')} accept{'s' * (len(self.members) == 1)} the plan, "
                    f"min_clients asks for {self.config.quorum}. refusals.jsonl says who refused, and why."
                )
            agreement = self.propose()
            refusals = self.ask(agreement, "plan")
            if not refusals:
                return agreement
            for name in refusals:
                self._refused.add(self.members.pop(name).node)

    def propose(self) -> Agreement:
        """Return the plan of those who joined; whose number of examples alone makes it impossible stays out.

        Raises:
            ConfigError: there is no such plan, whoever is left out.
        """
        names = tuple(name for name in self.config.clients if name in self.members)
        agreement = self._agreement(names)
        try:
            assert agreement.arm.plan.client_sizes == agreement.sizes  # raises here if there is no such plan
        except ConfigError as error:
            for left_out in names:
                rest = self._agreement(tuple(name for name in names if name != left_out))
                if isinstance(attempt(lambda: rest.arm), Failure):  # noqa: B023 - called now
                    continue
                node = self.members.pop(left_out).node
                self._refused.add(node)
                self.refusals[left_out] = f"With its number of training examples there is no plan: {error}"
                self.report(left_out, node, self.refusals[left_out])
                return rest
            raise
        return agreement

    def ask(self, agreement: Agreement, kind: str, names: Collection[str] | None = None) -> dict[str, str]:
        """Ask the clients of a plan whether they accept it, and return why not, by name of those who do not.

        Args:
            agreement: the plan.
            kind: "plan", which those who accept will train by; "check", of which nothing stays.
            names: whom to ask; None: all of the plan.
        """
        proposal = Envelope(kind, {**version(), "agreement": agreement.to_json()})
        names = agreement.clients if names is None else names
        asked = {self.members[name].node: name for name in names if name in self.members}
        refusals = dict.fromkeys(asked.values(), "no answer by the deadline")
        requests = dict.fromkeys(asked, proposal)
        for node, answer in self.transport.ask(requests, self.config.join_deadline_s, MAX_ANSWER_BYTES):
            if node in asked and answer == Envelope(kind, {"agreement": agreement.digest}):
                refusals.pop(asked[node], None)
            else:
                refusals[asked.get(node, "")] = reason_of(answer)
                self.report(asked.get(node, ""), node, reason_of(answer))
        return {name: reason for name, reason in refusals.items() if name}

    def _agreement(self, names: tuple[str, ...]) -> Agreement:
        members = [self.members[name] for name in names]
        sets = self.config.class_sets(names, self.offer.class_names)
        return Agreement(
            **self.offer.to_json(),
            clients=names,
            sizes=tuple(member.size for member in members),
            client_classes=sets,
            keys=tuple(member.key for member in members) if self.has_shares else (),
            signatures=tuple(member.signature for member in members) if self.has_shares else (),
        )

    def _joined(
        self,
        node: str,
        answer: Envelope | Failure,
        asked: Mapping[str, Envelope],
        online: set[str],
        begun: Agreement | None,
    ) -> tuple[str, EnrolledClient]:
        """Read who a node says it is; ProtocolError if it may not join."""
        if isinstance(answer, Failure) or answer.kind != "join":
            raise ProtocolError(reason_of(answer))
        name, size = check_declared(answer).meta["client"], answer.meta["num_examples"]
        most = self.config.max_examples
        if not isinstance(name, str) or type(size) is not int or not 1 <= size <= most:
            raise ProtocolError(
                f"A client must say its name and its number of training examples, 1 to {most}, got {size!r}. A larger "
                "client needs a larger federation.max_examples."
            )
        if node not in asked or name not in (self.config.clients if begun is None else {*begun.clients, *self.late}):
            raise ProtocolError(f"{name!r} is none of the clients that may join.")
        check_version(answer.meta, "The server", name)
        if answer.meta["backbone"] != self.offer.backbone:
            raise ProtocolError(f"{name} has another backbone than the federation.")
        if name in self.members and self.members[name].node in online:
            raise ProtocolError(f"{name} joined already, from another node.")
        member = EnrolledClient(node, size, *(self._key_of(name, answer) if self.has_shares else ()))
        if begun is not None and name in begun.clients:
            _check_same(name, member, begun)
        return name, member

    def _key_of(self, name: str, answer: Envelope) -> tuple[str, str]:
        """Return a client's run key and signature; ProtocolError for what no other client could read."""
        key, signature = answer.meta["key"], answer.meta["signature"]
        if not all(isinstance(text, str) and re.fullmatch(HEX, text) for text in (key, signature)) or len(key) != 64:
            raise ProtocolError(f"{name} did not say its run key and a signature of it, which noise shares need.")
        if any(other != name and member.key == key for other, member in self.members.items()):
            raise ProtocolError(f"{name} has the run key of another client.")
        return key, signature


def _check_same(name: str, member: EnrolledClient, begun: Agreement) -> None:
    """Raise ProtocolError for a client that is not as it was when it agreed on the plan."""
    at = begun.clients.index(name)
    if begun.sizes[at] != member.size:
        unit = f"training {begun.run_config.privacy.unit_word}"
        raise ProtocolError(f"{name} agreed with {counted(begun.sizes[at], unit)}, now it has {member.size}.")
    if begun.keys and begun.keys[at] != member.key:
        raise ProtocolError(
            f"{name} has another run key than the one that it agreed with: its store was lost, or is another one. It "
            "is out of this run."
        )
