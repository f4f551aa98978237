"""The server of a federation: rounds with the clients that respond, and a checkpoint before anything new is sent.

A killed server goes on as the same run: the last shared state that may have left is on disk, what was asked and not yet
used is asked again, and clients give the very answer that they gave before.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hushprompt import files
from hushprompt.deployment import gains, wire
from hushprompt.deployment.agreement import Agreement, make_offer, open_model, read_agreement
from hushprompt.deployment.config import REFUSALS, ServerConfig
from hushprompt.deployment.enrollment import MAX_ANSWER_BYTES, Enrollment
from hushprompt.deployment.envelope import Envelope
from hushprompt.deployment.gains import NoisyCounts
from hushprompt.deployment.progress import RoundTally, ServerState, load_state, save_state
from hushprompt.deployment.responses import Responses
from hushprompt.deployment.secure_step import SecureStep, ServerEnds, forget_pending, without_step
from hushprompt.deployment.server_record import AGREEMENT, CHECKED, CheckOutcome, ServerRecord, rounds
from hushprompt.deployment.transport import Failure, MessageTransport, attempt, plain
from hushprompt.errors import ConfigError, ProtocolError, ResumeError
from hushprompt.federation.client import Step
from hushprompt.federation.payload import PayloadKind
from hushprompt.federation.server import Server
from hushprompt.methods.base import TakesLate
from hushprompt.privacy.config import SHARES_ONLY, Channel
from hushprompt.privacy.statements import STAYS_AT_HOME
from hushprompt.runs import identity as identities
from hushprompt.runs import manifest, records
from hushprompt.runs.arm import Arm
from hushprompt.runs.identity import IdentityFile, RunIdentity
from hushprompt.runs.ledger import LedgerFile
from hushprompt.runs.observer import Observer
from hushprompt.runs.privacy_record import privacy_record
from hushprompt.runs.prompts import write_prompts
from hushprompt.runs.records import ArmSummary
from hushprompt.seeding import stream
from hushprompt.words import counted

LOG = logging.getLogger(__name__)


def serve(config: ServerConfig, transport: MessageTransport, observer: Observer, *, leave_step: bool = False) -> None:
    """Enroll the clients, train, and write a run folder; go on from a checkpoint in the folder.

    Args:
        config: of the server; the folder is made if it is missing.
        transport: reaches the clients.
        observer: who watches; `on_round` gets a record without losses and scores, which clients never send.
        leave_step: go on without the step of noise shares that waits for an answer; it stays charged.

    Raises:
        ConfigError: the run is impossible for the clients that joined, or outside the privacy theorem; or there is no
            step to leave out.
        ProtocolError: too few clients joined, or answered. Call again to go on.
        ResumeError: the folder is in use, damaged, belongs to another config, or was begun with other versions and is
            seeded.
    """
    config.folder.mkdir(parents=True, exist_ok=True)
    with records.locked(config.folder):
        Coordinator(config, transport).run(observer, leave_step=leave_step)


def check(config: ServerConfig, transport: MessageTransport) -> CheckOutcome:
    """Ask the clients to join and to look at the plan, and write what they say; nothing is trained, charged or kept.

    Args:
        config: of the server.
        transport: reaches the clients.

    Raises:
        ResumeError: the folder is in use, or belongs to another config.
    """
    config.folder.mkdir(parents=True, exist_ok=True)
    with records.locked(config.folder):
        outcome = Coordinator(config, transport).check()
        records.write_json(config.folder / CHECKED, outcome)
        return outcome


class Coordinator:
    """One run at the server."""

    def __init__(self, config: ServerConfig, transport: MessageTransport) -> None:
        """Load the model, and who agreed on what if the run has begun."""
        self.transport, self.folder = transport, config.folder
        path = self.folder / AGREEMENT
        self.agreement = read_agreement(records.read_json(path)) if path.exists() else None
        self.config = config = self._as_agreed(config)
        names = config.class_names()
        self.model = open_model(config.run, names)
        run = secrets.token_hex(8) if self.agreement is None else self.agreement.run
        fingerprint = self.model.backbone.fingerprint
        config.federation.class_sets(config.federation.clients, names)  # refuses classes that there are not
        self.offer = make_offer(config.federation.name, run, config.run, names, fingerprint)
        if self.agreement is not None and not self._is_of_this_config(self.agreement):
            raise ResumeError(f"The run in {self.folder} belongs to another config. Use another folder.")
        if self.agreement is not None:
            begun = IdentityFile(self.folder, config.run)
            begun.check(self._identity(self.agreement.first))
            begun.keep(has_begun=True)
        self.enrollment = Enrollment(config.federation, self.offer, transport, self._report)
        self.ends = ServerEnds(
            config=config.federation,
            folder=self.folder,
            enrollment=self.enrollment,
            transport=transport,
            report=self._report,
        )

    def _as_agreed(self, config: ServerConfig) -> ServerConfig:
        """Return the config with the noise where it was agreed to be, if the config itself leaves that open."""
        if config.why_not_shares is None:
            return config
        if self.agreement is None:
            if config.why_not_shares:
                LOG.warning(config.why_not_shares)
            return config
        agreed = self.agreement.run_config.privacy
        kept = {name: getattr(agreed, name) for name in ("noise_at", *SHARES_ONLY)}
        privacy = dataclasses.replace(config.run.privacy, **kept)
        return dataclasses.replace(config, run=dataclasses.replace(config.run, privacy=privacy))

    def _is_of_this_config(self, agreement: Agreement) -> bool:
        """True where the server would agree on the same with the same clients."""
        sets = self.config.federation.class_sets(agreement.clients, agreement.class_names)
        return sets == agreement.client_classes and self.offer.to_json().items() <= agreement.to_json().items()

    def run(self, observer: Observer, *, leave_step: bool = False) -> None:
        """Enroll, train and finish."""
        begun = self.agreement and self.agreement.first
        is_over = begun is not None and self._state(begun).round_index == begun.arm.num_rounds
        agreement = self._enrolled(is_over)
        arm, state = agreement.arm, self._state(agreement)
        self.recorded = identities.read(self.folder)
        ledger = self._ledger()
        ledger.check(arm, state.round_index)
        records.truncate_records(self.folder / "records.jsonl", state.records_size)
        observer.on_arm(arm, 0, 1, state.round_index)
        if leave_step:
            state = without_step(self.folder, arm, state)
        is_shared = Channel.GLOBAL in arm.plan.channels
        while state.round_index < arm.num_rounds:
            until = state.round_index + 1 if is_shared else arm.num_rounds
            until = self._charged(ledger, agreement, state.round_index, until)
            if until == state.round_index:
                break
            state = self._round(agreement, state) if is_shared else self._alone(agreement, state, until)
            record = self._record(ledger, agreement, state)
            size = records.append_record(self.folder / "records.jsonl", record)
            state = dataclasses.replace(state, records_size=size, tally=RoundTally())
            save_state(self.folder, state)
            forget_pending(self.folder)
            observer.on_round(record)
        if state.round_index == arm.num_rounds:
            state = self._with_late(state, observer, waits=is_over)
        self._finish(self._ledger(), state)

    def _state(self, agreement: Agreement) -> ServerState:
        """Return the checkpoint, or the state before training."""
        arm = agreement.arm
        template, _ = arm.method.init(self.model, stream(self.config.run.seed, "init"))
        norms = arm.plan.release_plan.first_norms(len(agreement.sizes))
        return load_state(self.folder, ServerState(shared=template, norms=norms))

    def _ledger(self) -> LedgerFile:
        """Read what was charged to the clients of the agreement as it is now."""
        assert self.agreement is not None, "somebody enrolled"
        return LedgerFile(self.folder, self.agreement.clients, self.recorded.digest if self.recorded else "")

    def check(self) -> CheckOutcome:
        """Return what each client says of the plan."""
        enrollment, clients = self.enrollment, self.config.federation.clients
        begun = self.agreement and self.agreement.first
        missing = dict.fromkeys(enrollment.missing(clients, begun), "It did not join.") | enrollment.refusals
        found = {name: member.size for name, member in enrollment.members.items()}
        try:
            agreement = enrollment.propose() if begun is None else begun
            refusals = missing | enrollment.refusals | enrollment.ask(agreement, "check")
            arms = privacy_record([agreement.arm])["arms"]
        except ConfigError as error:
            return CheckOutcome(sizes=found, refusals=missing, problem=f"There is no such plan: {error}")
        return CheckOutcome(sizes=found, refusals=refusals, guarantees=arms, problem="")

    def _enrolled(self, is_over: bool) -> Agreement:
        """Return what all agreed on, late clients apart: now, or when the run began; nobody is due where it is over."""
        if self.agreement is None:
            self.enrollment.wait(self.config.federation.clients)
            self.agreement = self.enrollment.agree()
            files.write_text(self.folder / "config.toml", self.config.run.to_toml())
            records.write_json(self.folder / identities.FILE, self._identity(self.agreement))
            records.write_json(self.folder / AGREEMENT, self.agreement.to_json())
            return self.agreement
        if is_over and self._not_there(()):
            return self.agreement.first
        self.enrollment.wait(self.agreement.first.clients, self.agreement.first)
        return self.agreement.first

    def _not_there(self, late: Collection[str]) -> list[str]:
        """Return who may join late: clients of the config that were not there for the release, but for those named."""
        assert self.agreement is not None, "it was made"
        first, names = self.agreement.first, self.config.federation.clients
        if first.keys:  # one client's sum is no sum over clients
            return []
        if not (isinstance(first.arm.method, TakesLate) and first.arm.method.takes_late):
            return []
        return [name for name in names if name not in first.clients and name not in late]

    def _with_late(self, state: ServerState, observer: Observer, *, waits: bool) -> ServerState:
        """Take in clients that came after the release, one by one: each makes its last part from what is published.

        Nobody else is asked for anything. A client that is lost on the way is asked the same again in the next run.
        """
        assert self.agreement is not None, "it was made"
        names = self._not_there(state.late)
        self.enrollment.admit(names)
        if waits:
            self.enrollment.missing(tuple(names), self.agreement)
        elif names:
            self.enrollment.look(self.agreement)
        for name in names:
            if name in self.enrollment.members:
                state = self._with_one_late(state, name, observer)
        return state

    def _with_one_late(self, state: ServerState, name: str, observer: Observer) -> ServerState:
        """Agree with one late client, charge it, ask for its part and add that; the same state if it gives none."""
        start, own = time.perf_counter(), self._agreed_late(name)
        if own is None or self.agreement is None:
            return state
        responses = self._asked_late(own, state)
        for message in responses.messages.values():
            arm, client_id = self.agreement.arm, self.agreement.clients.index(name)
            classes = own.client_classes[-1] if own.client_classes else None
            server = Server(self.config.run.seed, self.config.run.training, self.agreement.sizes)
            shared = server.add_late(arm, state.shared, message, client_id, classes)
            tally = RoundTally().plus(time.perf_counter() - start, responses)
            state = dataclasses.replace(state, shared=shared, late=[*state.late, name], tally=tally)
            record = dataclasses.replace(self._record(self._ledger(), own, state), is_late=True)
            size = records.append_record(self.folder / "records.jsonl", record)
            state = dataclasses.replace(state, records_size=size, tally=RoundTally())
            save_state(self.folder, state)
            observer.on_round(record)
        return state

    def _agreed_late(self, name: str) -> Agreement | None:
        """Have a late client accept its own plan, and charge it, on disk; None where it does not, or there is none."""
        assert self.agreement is not None, "it was made"
        member = self.enrollment.members[name]
        (classes,) = self.config.federation.class_sets([name], self.agreement.class_names) or (None,)
        own = self.agreement.first.with_late(name, member.size, classes)
        plan = attempt(lambda: own.arm.plan)
        if isinstance(plan, Failure):
            self._report(name, member.node, "With its number of training examples or its classes there is no plan.")
            return None
        if self.enrollment.ask(own, "plan", [name]):
            return None
        if name not in self.agreement.clients:
            self.agreement = self.agreement.with_late(name, member.size, classes)
            records.write_json(self.folder / AGREEMENT, self.agreement.to_json())
        arm, ledger, client_id = self.agreement.arm, self._ledger(), self.agreement.clients.index(name)
        if not ledger.of(arm.label).rounds(client_id):
            ledger.charge(arm, 0, [client_id])
        return own

    def _asked_late(self, own: Agreement, state: ServerState) -> Responses:
        """Ask a late client for its part; asked again it is the same request, whoever else came in between."""
        arm, steps, name = own.arm, self.config.run.training.local_steps, own.clients[-1]
        shared = arm.method.before_last(state.shared)  # type: ignore[attr-defined]
        at = {"round": 0, "step": arm.plan.sampler.steps_per_round - 1}
        tensors = wire.request_tensors(arm.method, shared, wire.payload_kind_of(arm, steps))
        request = Envelope("turn", {**self._names(own), **at}, tensors)
        node, report = self.enrollment.members[name].node, functools.partial(self._report, round=0, step=at["step"])
        responses = Responses(own, shared, None, request, {node: name}, steps, report)
        most = request.num_bytes * 2 + MAX_ANSWER_BYTES
        for which, answer in self.transport.ask({node: request}, self.config.federation.round_deadline_s, most):
            responses.take(which, answer)
        responses.close()
        return responses

    def _charged(self, ledger: LedgerFile, agreement: Agreement, first: int, until: int) -> int:
        """Charge rounds before anything is asked for them; return the first that the budget forbids, or `until`.

        A round is charged once: what is asked again after a crash gets the answer that was given before.
        """
        arm = agreement.arm
        done = ledger.of(arm.label).made
        for round_index in range(first, until):
            if round_index not in done and ledger.charge(arm, round_index, arm.cohorts[round_index].tolist()):
                return round_index
        return until

    def _round(self, agreement: Agreement, state: ServerState) -> ServerState:
        """Run one round with a checkpoint after each aggregation; a step > 0 goes on inside a round."""
        arm, training = agreement.arm, self.config.run.training
        kind = wire.payload_kind_of(arm, training.local_steps)
        server = Server(self.config.run.seed, training, agreement.sizes)
        cohort = arm.cohorts[state.round_index].tolist()
        if state.step == 0:
            state = dataclasses.replace(state, shared=arm.method.begin_round(state.shared))
        while state.step < arm.plan.sampler.steps_per_round:
            at, start = Step(state.round_index, state.step), time.perf_counter()
            norm = {} if state.norms is None else {"clip_norm": state.norms.of(0)["global"]}
            meta = {**self._names(agreement), "round": at.round_index, "step": at.step_index, **norm}
            if kind is PayloadKind.SHARES:
                total, number, exchanges = SecureStep(self.ends, agreement, state, meta, cohort).open()
                shared, norms = server.open_shares(arm, state.shared, state.norms, total, number, cohort, at)
            else:
                request = Envelope("turn", meta, wire.request_tensors(arm.method, state.shared, kind))
                responses = self._ask(agreement, state, request, cohort, self.config.federation.round_deadline_s)
                shared, norms = server.aggregate(arm, state.shared, state.norms, responses.messages, cohort, at)
                exchanges = (responses,)
            tally = state.tally.plus(time.perf_counter() - start, *exchanges)
            state = dataclasses.replace(
                state, shared=shared, norms=norms, step=at.step_index + training.local_steps, tally=tally
            )
            if state.step < arm.plan.sampler.steps_per_round:
                save_state(self.folder, state)  # the round's end is saved with its record
                forget_pending(self.folder)
        return dataclasses.replace(state, round_index=state.round_index + 1, step=0)

    def _alone(self, agreement: Agreement, state: ServerState, until: int) -> ServerState:
        """Let every client train all its rounds up to one by itself: nothing is shared."""
        start = time.perf_counter()
        request = Envelope("alone", {**self._names(agreement), "until": until})
        deadline = self.config.federation.round_deadline_s * (until - state.round_index)
        responses = self._ask(agreement, state, request, list(range(len(agreement.clients))), deadline)
        tally = state.tally.plus(time.perf_counter() - start, responses)
        return dataclasses.replace(state, round_index=until, tally=tally)

    def _ask(
        self, agreement: Agreement, state: ServerState, request: Envelope, cohort: list[int], deadline_s: float
    ) -> Responses:
        """Ask a cohort, and use the responses that arrive in time and fit the request.

        Raises:
            ProtocolError: fewer answers than `min_clients`.
        """
        members = self.enrollment.members
        names = [agreement.clients[client_id] for client_id in cohort]
        online = set(self.transport.online())
        if any(name not in members or members[name].node not in online for name in names):
            self.enrollment.look(agreement)
        asked = {members[name].node: name for name in names if name in members}
        place = {key: request.meta[key] for key in ("round", "step") if key in request.meta}
        responses = Responses(
            agreement,
            state.shared,
            state.norms,
            request,
            asked,
            self.config.run.training.local_steps,
            functools.partial(self._report, **place),
        )
        for name in names:
            if name not in members:
                responses.fail(name, "", "not online")
        requests = dict.fromkeys(asked, request)
        for node, answer in self.transport.ask(requests, deadline_s, request.num_bytes * 2 + MAX_ANSWER_BYTES):
            responses.take(node, answer)
        responses.close()
        least = min(self.config.federation.quorum, len(cohort))
        if len(responses.messages) < least:
            raise ProtocolError(
                f"{len(responses.messages)} of {counted(len(cohort), 'client')} answered, min_clients asks for "
                f"{least}. Nothing of this step was used. Start again when they are there, or with a smaller "
                "federation.min_clients."
            )
        return responses

    def _record(self, ledger: LedgerFile, agreement: Agreement, state: ServerState) -> ServerRecord:
        """Return the record of a round; clients never send losses and scores."""
        arm, tally = agreement.arm, state.tally
        most_rounds = ledger.of(arm.label).most_rounds
        return ServerRecord(
            arm=arm.label,
            round_index=state.round_index,
            seconds=tally.seconds,
            loss=math.nan,
            local=math.nan,
            neighbor=math.nan,
            harmonic_mean=math.nan,
            worst_client=math.nan,
            bytes_up=tally.bytes_up,
            bytes_down=tally.bytes_down,
            epsilon={str(who): arm.plan.epsilon(who, most_rounds) for who in arm.plan.audiences},
            cohort_size=arm.cohorts.cohort_size,
            num_clients=len(tally.took_part),
            delta=arm.plan.config.delta,
            noise_source=arm.plan.release_plan.noise_source,
            asked=tally.asked,
            took_part=tally.took_part,
            failures=tally.failures,
            header_bytes_up=tally.header_bytes_up,
            header_bytes_down=tally.header_bytes_down,
            left_out_steps=tally.left_out_steps,
        )

    def _finish(self, ledger: LedgerFile, state: ServerState) -> None:
        """Publish what is public, and tell the clients, who write what is theirs; one that misses it may ask later."""
        assert self.agreement is not None, "it was made"
        arm, backbone = self.agreement.arm, self.config.run.backbone
        made_of = self.agreement.among(state.late)
        spent = dataclasses.replace(ledger.spent(arm), method=made_of.arm.method)
        write_prompts(self.folder / "prompts", self.model, spent, state.shared, {}, backbone=backbone)
        more = {"not_private": STAYS_AT_HOME, **gains.statement(self.config.run)}
        statement = {**privacy_record(*ledger.outcome([arm]), in_one_process=False), **more}
        records.write_json(self.folder / "privacy.json", statement)
        told = self._tell_end(made_of.first, made_of.first.clients, made_of, state)
        for name in state.late:
            told |= self._tell_end(made_of.among([name]), [name], made_of, state)
        own = self._summary(ledger, arm, state, told)
        summary = {
            "arms": [*gains.reference_of(own), own],
            "provenance": records.provenance(self.config.run),
            "identity": self.recorded,
        }
        text = records.json_text(summary)
        manifest.write(self.folder, {"summary.json": text})
        files.write_text(self.folder / "summary.json", text)

    def _tell_end(
        self, agreed: Agreement, names: Sequence[str], made_of: Agreement, state: ServerState
    ) -> dict[str, NoisyCounts]:
        """Tell clients that agreed on one plan what came out, and of which late clients it is made too.

        Returns:
            By client, what it tells of its own evaluation images, where the plan has that.
        """
        steps, members = self.config.run.training.local_steps, self.enrollment.members
        late = {"late": wire.late_fields(made_of)} if made_of.num_late else {}
        meta = {**self._names(agreed), "rounds": state.round_index, **late}
        kind = wire.payload_kind_of(agreed.arm, steps)
        request = Envelope("finish", meta, wire.request_tensors(agreed.arm.method, state.shared, kind))
        asked = {members[name].node: name for name in names if name in members}
        responses = Responses(agreed, state.shared, None, request, asked, steps, self._report)
        deadline = self.config.federation.round_deadline_s
        for node, answer in self.transport.ask(dict.fromkeys(asked, request), deadline, MAX_ANSWER_BYTES):
            responses.take(node, answer)
        responses.close()
        answers = {agreed.clients[client_id]: counts for client_id, counts in responses.messages.items()}
        return {name: counts for name, counts in answers.items() if counts is not None}

    def _summary(self, ledger: LedgerFile, arm: Arm, state: ServerState, told: Mapping[str, NoisyCounts]) -> ArmSummary:
        """Return the run's line of a result table; scores stay with the clients, but for what they told with noise."""
        plan, audience = ledger.spent(arm).plan, arm.plan.config.audience
        has_text = self.model.backbone.capabilities.scores_untrained
        gained = self._told_before()  # by clients that may be gone now
        for name, counts in told.items():
            before, now = counts.accuracies
            gained[name] = {"client": name, "zero_shot": before if has_text else None, "local": now}
        local = [float(one["local"]) for one in gained.values()]
        return ArmSummary(
            arm=arm.label,
            method=arm.method_name,
            title=arm.method.title,
            epsilon=plan.epsilon(audience) if plan.channels else None,
            delta=plan.config.delta,
            audience=str(audience),
            local=sum(local) / len(local) if local else math.nan,
            neighbor=math.nan,
            harmonic_mean=math.nan,
            worst_client=min(local, default=math.nan),
            calibration_error=math.nan,
            seconds=sum(record.seconds for record in rounds(self.folder)),
            seed=self.config.run.seed,
            num_rounds=state.round_index,
            stopped=None if state.round_index == arm.num_rounds else "the privacy budget was spent",
            per_client=list(gained.values()),
            per_class=[],
            is_open=not self.offer.class_names,
            noise_source=plan.release_plan.noise_source if plan.channels else None,
        )

    def _told_before(self) -> dict[str, dict[str, Any]]:
        """Return by client what was told of gains when the run finished before, as a client tells once."""
        path = self.folder / "summary.json"
        arms = records.read_record(path)["arms"] if path.exists() else []
        return {one["client"]: one for arm in arms[-1:] for one in arm["per_client"]}

    def _identity(self, agreement: Agreement) -> RunIdentity:
        """Return what the run is, as far as the server knows: it has no data."""
        return RunIdentity(
            settings=identities.settings_of(self.config.run),
            class_names=agreement.class_names,
            clients=tuple(zip(agreement.clients, agreement.sizes, strict=True)),
            backbone=agreement.backbone,
            versions=identities.versions_of(self.config.run),
        )

    def _names(self, agreement: Agreement) -> dict[str, Any]:
        """Return what every message of the run says."""
        return {"federation": agreement.federation, "run": agreement.run, "agreement": agreement.digest}

    def _report(self, client: str, node: str, reason: str, **place: int) -> None:
        """Write down who was refused, refused, or did not answer."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = {"time": at, "client": client, "node": node, **place, "reason": plain(reason)}
        files.append_line(self.folder / REFUSALS, json.dumps(line))
