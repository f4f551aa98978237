"""One step at the server under secure aggregation: whom it asks, what it keeps, and the one sum that it opens.

Who takes part is on disk before anybody is asked, so a server that was killed asks the same clients for the same, and
they give the answers that they kept. Where the plan has a rescue, the answers and the list of who gave one are on disk
before anybody is asked to unmask: one list a step, whatever happens.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from hushprompt import files
from hushprompt.deployment import rescue, wire
from hushprompt.deployment.agreement import Agreement
from hushprompt.deployment.config import FederationConfig
from hushprompt.deployment.enrollment import MAX_ANSWER_BYTES, Enrollment
from hushprompt.deployment.envelope import Envelope
from hushprompt.deployment.progress import ServerState, save_state
from hushprompt.deployment.responses import Responses
from hushprompt.deployment.transport import MessageTransport
from hushprompt.errors import ConfigError, ProtocolError, ResumeError
from hushprompt.federation import payload
from hushprompt.federation.client import Step
from hushprompt.federation.payload import PayloadKind
from hushprompt.methods.base import OneRelease
from hushprompt.runs.arm import Arm
from hushprompt.runs.records import read_tensors
from hushprompt.runs.state import fields_of
from hushprompt.words import counted

FILE = "checkpoint/step.safetensors"
AGAIN_S = 1.0
"""Seconds from one question to the next for whoever did not answer."""
ASK_S = 60.0
"""Seconds that one question waits for its answer: a message that was lost with a client's process is sent again."""


@dataclass(frozen=True, kw_only=True)
class PendingHeader:
    """The plain values of a step that was asked for."""

    round_index: int
    step: int
    participants: list[str]
    """Whose messages alone cancel each other's masks: fixed once anybody was asked."""
    answered: list[str] = field(default_factory=list)
    """Where the plan has a rescue: of whom alone sums are opened, fixed once anybody was asked to unmask."""


@dataclass(frozen=True, kw_only=True)
class PendingStep(PendingHeader):
    """A step that was asked for, and is not in the shared state yet."""

    answers: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """Tensors by name of who answered, where they are kept."""

    def save(self, folder: Path) -> None:
        """Write it; whoever reads later finds the old one or this one."""
        values = dataclasses.asdict(PendingHeader(**fields_of(PendingHeader, self)))
        tensors = {f"{at}.{key}": self.answers[who][key] for at, who in enumerate(self.answered) for key in _KEPT}
        files.write_tensors(folder / FILE, tensors, json.dumps(values))


_KEPT = ("masked", "sealed")


def load_pending(folder: Path, at: Step) -> PendingStep | None:
    """Read the step that was asked for and not used; None where nothing was asked for this step yet.

    Raises:
        ResumeError: it is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        header, tensors = read_tensors(path, PendingHeader)
        if (header.round_index, header.step) != at:
            return None  # of a step that was used before the file could go
        answers = {who: {key: tensors[f"{n}.{key}"] for key in _KEPT} for n, who in enumerate(header.answered)}
    except (ValueError, KeyError) as error:
        raise ResumeError(f"The checkpoint {path} is damaged ({error}). Start a new run.") from error
    return PendingStep(**fields_of(PendingHeader, header), answers=answers)


def forget_pending(folder: Path) -> None:
    """Remove the file of a step that is in the shared state, or that is left out."""
    (folder / FILE).unlink(missing_ok=True)


def without_step(folder: Path, arm: Arm, state: ServerState) -> ServerState:
    """Return the state after the step that waits for answers, as if nobody had taken part in it, and save it.

    Raises:
        ConfigError: no step waits, or the method needs every step.
    """
    if load_pending(folder, Step(state.round_index, state.step)) is None:
        raise ConfigError(
            "No step of this run waits for an answer: there is nothing to leave out. Leave the option out."
        )
    if isinstance(arm.method, OneRelease):
        raise ConfigError(f"{arm.method.title} makes one release, and each step of it is needed: none can be left out.")
    shared = arm.method.begin_round(state.shared) if state.step == 0 else state.shared
    tally = dataclasses.replace(state.tally, left_out_steps=[*state.tally.left_out_steps, state.step + 1])
    state = dataclasses.replace(state, shared=shared, step=state.step + 1, tally=tally)
    save_state(folder, state)
    forget_pending(folder)
    return state


class OpenedSum(NamedTuple):
    """What came of a step."""

    total: Int64[np.ndarray, " l"]
    """[L] noisy sum over all who are in it, modulo 2^64."""
    num_participants: int
    """Clients that were asked to take part: for so many each share of the noise was planned."""
    exchanges: tuple[Responses, ...]
    """Answers to each message of the step."""


@dataclass(frozen=True, kw_only=True)
class ServerEnds:
    """What a step needs of the server around it."""

    config: FederationConfig
    folder: Path
    enrollment: Enrollment
    transport: MessageTransport
    report: Callable[..., None]


class SecureStep:
    """One step of a plan with noise shares."""

    def __init__(
        self, ends: ServerEnds, agreement: Agreement, state: ServerState, meta: Mapping[str, Any], cohort: Sequence[int]
    ) -> None:
        """Take the step at which `state` is.

        Args:
            ends: of the server.
            agreement: what all agreed on.
            state: before the step.
            meta: what the turn's message says beside who takes part.
            cohort: ids of the round's clients.
        """
        self.ends, self.agreement, self.state, self.meta = ends, agreement, state, meta
        self.cohort = [agreement.clients[client_id] for client_id in cohort]
        self.terms = agreement.arm.plan.terms()
        self.least = max(min(ends.config.min_clients, len(cohort)), self.terms.least)

    def open(self) -> OpenedSum:
        """Ask for the step, or for the rest of it, and open its sum.

        Raises:
            ProtocolError: too few clients are there, or answered in time. What was asked and answered is kept.
        """
        at = Step(self.state.round_index, self.state.step)
        pending = load_pending(self.ends.folder, at) or self._begun(at)
        tensors = wire.request_tensors(self.agreement.arm.method, self.state.shared, PayloadKind.SHARES)
        request = Envelope("turn", {**self.meta, "participants": pending.participants}, tensors)
        turns = self._responses(request, pending)
        for name in self.cohort:
            if name not in pending.participants:
                turns.fail(name, "", "not online")
        if pending.answered:
            self._take_kept(turns, pending)
        else:
            self._gather(
                turns,
                dict.fromkeys(pending.participants, request),
                lambda: self._is_settled(turns, pending.participants),
            )
            self._check_answered(turns, pending.participants)
        if not self.terms.rescue:
            return OpenedSum(self._masked(turns), len(pending.participants), (turns,))
        return self._unmasked(pending, request, turns)

    def _masked(self, turns: Responses) -> Int64[np.ndarray, " l"]:
        """Return the sum of all masked vectors, in which masks of those who answered cancel."""
        return payload.add_shares(list(turns.messages.values()))

    def _take_kept(self, turns: Responses, pending: PendingStep) -> None:
        """Use the answers that were kept before anybody was asked to unmask."""
        said = {key: self.meta[key] for key in ("agreement", "round", "step")} | {"context": turns.request.digest}
        turns.asked |= {name: name for name in pending.answered}
        for name in pending.participants:
            if name not in pending.answered:
                turns.fail(name, "", "its answer was not there when the sum was unmasked")
        for name in pending.answered:
            turns.take(name, Envelope("turn", {"client": name, **said}, pending.answers[name]))

    def _begun(self, at: Step) -> PendingStep:
        """Choose who takes part, of those who are there, and write it down.

        Raises:
            ProtocolError: too few are there by the deadline.
        """
        end = time.monotonic() + self.ends.config.round_deadline_s
        while len(present := self._reachable(self.cohort)) < self.least:
            if (left := end - time.monotonic()) <= 0:
                raise ProtocolError(
                    f"{len(present)} of {counted(len(self.cohort), 'client')} are there, and a step needs "
                    f"{self.least}, by privacy.max_dropouts = {self.terms.max_dropouts} and federation.min_clients. "
                    "Nothing was asked. Start again when they are there."
                )
            time.sleep(min(AGAIN_S, left))
        names = [name for name in self.cohort if name in present]
        pending = PendingStep(round_index=at.round_index, step=at.step_index, participants=names)
        pending.save(self.ends.folder)
        return pending

    def _reachable(self, names: Sequence[str]) -> dict[str, str]:
        """Return the nodes of those of `names` that can be reached now, after a look for the others."""

        def found() -> dict[str, str]:
            online, members = set(self.ends.transport.online()), self.ends.enrollment.members
            nodes = {name: members[name].node for name in names if name in members}
            return {name: node for name, node in nodes.items() if node in online}

        nodes = found() if names else {}
        if len(nodes) < len(names):
            self.ends.enrollment.look(self.agreement)
            nodes = found()
        return nodes

    def _gather(self, responses: Responses, requests: Mapping[str, Envelope], is_settled: Callable[[], bool]) -> None:
        """Ask until everybody has answered or refused, nothing more is needed, or the deadline has passed.

        Args:
            responses: where the answers go.
            requests: by client.
            is_settled: whether to stop waiting; asked after each answer.
        """
        config, transport = self.ends.config, self.ends.transport
        end = time.monotonic() + config.round_deadline_s
        most = max(request.num_bytes for request in requests.values()) * 2 + self._most_bytes
        while waiting := [who for who in requests if who not in responses.names and who not in responses.refused]:
            nodes = self._reachable(waiting)
            responses.asked |= {node: name for name, node in nodes.items()}
            left = min(max(end - time.monotonic(), 0.0), ASK_S)
            for node, answer in transport.ask({nodes[who]: requests[who] for who in nodes}, left, most):
                responses.take(node, answer)
                if is_settled():
                    return
            if is_settled() or time.monotonic() >= end:
                return
            time.sleep(min(AGAIN_S, max(end - time.monotonic(), 0.0)))

    @property
    def _most_bytes(self) -> int:
        """Most bytes of an answer beside what is twice a request's."""
        num = len(self.cohort)
        return MAX_ANSWER_BYTES + num * rescue.box_size(num)

    def _is_settled(self, turns: Responses, participants: Sequence[str]) -> bool:
        """Whether waiting on is of no use: so many refused that the sum cannot open.

        With a rescue a client that is not connected any more is not waited for, where those who answered are enough.
        """
        least = self._needed(participants)
        if len(participants) - len(turns.refused) < least:
            return True
        waiting = [who for who in participants if who not in turns.names and who not in turns.failures]
        if waiting or len(turns.names) < least:
            return False
        return not self._reachable([who for who in participants if who not in {*turns.names, *turns.refused}])

    def _needed(self, participants: Sequence[str]) -> int:
        """Return how many of the participants must answer for the sum to open."""
        return self.least if self.terms.rescue else len(participants)

    def _check_answered(self, turns: Responses, participants: Sequence[str]) -> None:
        """Raise ProtocolError where too few answered for a sum to open."""
        turns.close()
        least = self._needed(participants)
        if len(turns.names) >= least:
            return
        why = "; ".join(f"{who}: {turns.failures[who].rstrip('.')}" for who in participants if who in turns.failures)
        raise ProtocolError(
            f"{len(turns.names)} of the {counted(len(participants), 'client')} of this step answered, and its sum "
            f"opens with {'at least ' * self.terms.rescue}{least} ({why}). Nothing of this step was used. `run` asks "
            "the same again; `run --leave-step` goes on without this step, which stays charged."
        )

    def _unmasked(self, pending: PendingStep, request: Envelope, turns: Responses) -> OpenedSum:
        """Fix of whom the sum is, have them unmask it, and open it.

        Raises:
            ProtocolError: too few unmask it by the deadline.
        """
        if not pending.answered:
            kept = {name: turns.tensors[name] for name in turns.names}
            pending = dataclasses.replace(pending, answered=turns.names, answers=kept)
            pending.save(self.ends.folder)
        requests = self._unmask_requests(pending, request)
        unmasks = self._responses(next(iter(requests.values())), pending)
        self._gather(unmasks, requests, lambda: self._can_open(unmasks))
        if not self._can_open(unmasks):
            unmasks.close()
            raise ProtocolError(
                f"{len(unmasks.names)} of {counted(len(requests), 'client')} told what unmasks the sum of this step, "
                f"and it opens with {self.terms.least} of them. Nothing of it was used. `run` asks the same again."
            )
        place = {name: at for at, name in enumerate(pending.participants)}
        answered = [place[name] for name in pending.answered]
        total = rescue.open_sum(
            self._masked(turns),
            answered,
            sorted({*place.values()} - {*answered}),
            {place[name]: shares for name, shares in zip(unmasks.names, unmasks.messages.values(), strict=True)},
            self.terms.least,
        )
        return OpenedSum(total, len(place), (turns, unmasks))

    def _unmask_requests(self, pending: PendingStep, request: Envelope) -> dict[str, Envelope]:
        """Return what each client that answered is asked: who did, and the rows that they sealed for it."""
        place = {name: at for at, name in enumerate(pending.participants)}
        sealed = {place[name]: pending.answers[name]["sealed"].numpy() for name in pending.answered}
        names = {key: value for key, value in self.meta.items() if key != "clip_norm"}
        meta = {**names, "context": request.digest, "answered": pending.answered}
        rows = {name: torch.from_numpy(rescue.rows_for(sealed, place[name])) for name in pending.answered}
        return {name: Envelope("unmask", meta, {"sealed": row}) for name, row in rows.items()}

    def _can_open(self, unmasks: Responses) -> bool:
        """Whether enough clients gave shares of the seeds of each who is in the sum; a row of zeros is none."""
        given = [shares.any(axis=(1, 2)) for shares in unmasks.messages.values()]
        return bool(given) and bool((np.sum(given, axis=0) >= self.terms.least).all())

    def _responses(self, request: Envelope, pending: PendingStep) -> Responses:
        """Return a place for the answers to a message."""
        at = {key: self.meta[key] for key in ("round", "step")}
        report, number = functools.partial(self.ends.report, **at), len(pending.participants)
        return Responses(self.agreement, self.state.shared, self.state.norms, request, {}, 1, report, number)
