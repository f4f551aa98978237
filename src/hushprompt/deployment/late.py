"""Clients that join after the one release was made: each makes its last part alone, from what is published.

Nobody else is asked for anything. A client that is lost on the way is asked the same again in the next run.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection
from typing import TYPE_CHECKING

from hushprompt.deployment import wire
from hushprompt.deployment.agreement import Agreement
from hushprompt.deployment.envelope import Envelope
from hushprompt.deployment.progress import RoundTally, ServerState
from hushprompt.deployment.responses import Responses
from hushprompt.deployment.server_record import AGREEMENT
from hushprompt.deployment.transport import Failure, attempt
from hushprompt.federation.server import Server
from hushprompt.methods.base import TakesLate
from hushprompt.runs import records
from hushprompt.runs.observer import Observer

if TYPE_CHECKING:
    from hushprompt.deployment.coordinator import Coordinator


def missing(server: Coordinator, joined: Collection[str]) -> list[str]:
    """Return who may join late: clients of the config that were not there for the release, but for those who joined."""
    assert server.agreement is not None, "it was made"
    first, names = server.agreement.first, server.config.federation.clients
    if first.keys:  # one client's sum is no sum over clients
        return []
    if not (isinstance(first.arm.method, TakesLate) and first.arm.method.takes_late):
        return []
    return [name for name in names if name not in first.clients and name not in joined]


def take_in(server: Coordinator, state: ServerState, observer: Observer, *, waits: bool) -> ServerState:
    """Take in late clients one by one, as many as there are; `waits` for all of them until the deadline."""
    assert server.agreement is not None, "it was made"
    names = missing(server, state.late)
    server.enrollment.admit(names)
    if waits:
        server.enrollment.missing(tuple(names), server.agreement)
    elif names:
        server.enrollment.look(server.agreement)
    for name in names:
        if name in server.enrollment.members:
            state = _with_one(server, state, name, observer)
    return state


def _with_one(server: Coordinator, state: ServerState, name: str, observer: Observer) -> ServerState:
    """Agree with one late client, charge it, ask for its part and add that; the same state if it gives none."""
    start, own = time.perf_counter(), _agreed(server, name)
    if own is None or server.agreement is None:
        return state
    responses = asked(server, own, state)
    for message in responses.messages.values():
        arm, client_id = server.agreement.arm, server.agreement.clients.index(name)
        classes = own.client_classes[-1] if own.client_classes else None
        aggregating = Server(server.config.run.seed, server.config.run.training, server.agreement.sizes)
        shared = aggregating.add_late(arm, state.shared, message, client_id, classes)
        tally = RoundTally().plus(time.perf_counter() - start, responses)
        state = dataclasses.replace(state, shared=shared, late=[*state.late, name], tally=tally)
        record = dataclasses.replace(server.record(server.ledger(), own, state), is_late=True)
        state = server.keep(state, record)
        observer.on_round(record)
    return state


def _agreed(server: Coordinator, name: str) -> Agreement | None:
    """Have a late client accept its own plan, and charge it, on disk; None where it does not, or there is none."""
    assert server.agreement is not None, "it was made"
    member = server.enrollment.members[name]
    (classes,) = server.config.federation.class_sets([name], server.agreement.class_names) or (None,)
    own = server.agreement.first.with_late(name, member.size, classes)
    plan = attempt(lambda: own.arm.plan)
    if isinstance(plan, Failure):
        server.report(name, member.node, "With its number of training examples or its classes there is no plan.")
        return None
    if server.enrollment.ask(own, "plan", [name]):
        return None
    if name not in server.agreement.clients:
        server.agreement = server.agreement.with_late(name, member.size, classes)
        records.write_json(server.folder / AGREEMENT, server.agreement.to_json())
    arm, ledger, client_id = server.agreement.arm, server.ledger(), server.agreement.clients.index(name)
    if not ledger.of(arm.label).rounds(client_id):
        ledger.charge(arm, 0, [client_id])
    return own


def asked(server: Coordinator, own: Agreement, state: ServerState) -> Responses:
    """Ask a late client for its part; asked again it is the same request, whoever else came in between."""
    arm, steps, name = own.arm, server.config.run.training.local_steps, own.clients[-1]
    shared = arm.method.before_last(state.shared)  # type: ignore[attr-defined]
    at = {"round": 0, "step": arm.plan.sampler.steps_per_round - 1}
    tensors = wire.request_tensors(arm.method, shared, wire.payload_kind_of(arm, steps))
    request = Envelope("turn", {**server.names(own), **at}, tensors)
    node, deadline = server.enrollment.members[name].node, server.config.federation.round_deadline_s
    return server.exchange(own, dataclasses.replace(state, shared=shared), request, {node: name}, deadline)
