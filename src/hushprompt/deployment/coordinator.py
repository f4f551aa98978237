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
from collections.abc import Mapping, Sequence
from typing import Any

from hushprompt import files
from hushprompt.deployment import gains, late, wire
from hushprompt.deployment.agreement import Agreement, make_offer, open_model, read_agreement
from hushprompt.deployment.config import REFUSALS, ServerConfig
from hushprompt.deployment.enrollment import MAX_ANSWER_BYTES, Enrollment
from hushprompt.deployment.envelope import Envelope
from hushprompt.deployment.gains import NoisyCounts
from hushprompt.deployment.progress import RoundTally, ServerState, load_state, save_state
from hushprompt.deployment.responses import Responses
from hushprompt.deployment.secure_step import SecureStep, ServerEnds, forget_pending, without_step
from hushprompt.deployment.server_record import AGREEMENT, CHECKED, CheckOutcome, ServerRecord, rounds
from hushprompt.deployment.transport import MessageTransport, plain
from hushprompt.errors import ConfigError, ProtocolError, ResumeError
from hushprompt.federation.client import Step
from hushprompt.federation.payload import PayloadKind
from hushprompt.federation.server import Server
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
from hushprompt.runs.state import fields_of
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
        self.enrollment = Enrollment(config.federation, self.offer, transport, self.report)
        self.ends = ServerEnds(
            config=config.federation,
            folder=self.folder,
            enrollment=self.enrollment,
            transport=transport,
            report=self.report,
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
        ledger = self.ledger()
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
            record = self.record(ledger, agreement, state)
            state = self.keep(state, record)
            observer.on_round(record)
        if state.round_index == arm.num_rounds:
            state = late.take_in(self, state, observer, waits=is_over)
        self._finish(self.ledger(), state)

    def keep(self, state: ServerState, record: ServerRecord) -> ServerState:
        """Write a record and the state that it belongs to, and begin to count anew."""
        size = records.append_record(self.folder / "records.jsonl", record)
        state = dataclasses.replace(state, records_size=size, tally=RoundTally())
        save_state(self.folder, state)
        forget_pending(self.folder)
        return state

    def _state(self, agreement: Agreement) -> ServerState:
        """Return the checkpoint, or the state before training."""
        arm = agreement.arm
        template, _ = arm.method.init(self.model, stream(self.config.run.seed, "init"))
        norms = arm.plan.release_plan.first_norms(len(agreement.sizes))
        return load_state(self.folder, ServerState(shared=template, norms=norms))

    def ledger(self) -> LedgerFile:
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
        if is_over and late.missing(self, ()):
            return self.agreement.first
        self.enrollment.wait(self.agreement.first.clients, self.agreement.first)
        return self.agreement.first

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
            meta = {**self.names(agreement), "round": at.round_index, "step": at.step_index, **norm}
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
        request = Envelope("alone", {**self.names(agreement), "until": until})
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
        absent = [name for name in names if name not in members]
        responses = self.exchange(agreement, state, request, asked, deadline_s, absent)
        least = min(self.config.federation.quorum, len(cohort))
        if len(responses.messages) < least:
            raise ProtocolError(
                f"{len(responses.messages)} of {counted(len(cohort), 'client')} answered, min_clients asks for "
                f"{least}. Nothing of this step was used. Start again when they are there, or with a smaller "
                "federation.min_clients."
            )
        return responses

    def exchange(
        self,
        agreement: Agreement,
        state: ServerState,
        request: Envelope,
        asked: Mapping[str, str],
        deadline_s: float,
        absent: Sequence[str] = (),
    ) -> Responses:
        """Send clients, names by node, one request, and use the responses that arrive in time and fit it."""
        place = {key: request.meta[key] for key in ("round", "step") if key in request.meta}
        steps, report = self.config.run.training.local_steps, functools.partial(self.report, **place)
        responses = Responses(agreement, state.shared, state.norms, request, asked, steps, report)
        for name in absent:
            responses.fail(name, "", "not online")
        most = MAX_ANSWER_BYTES + (2 * request.num_bytes if request.kind == "turn" else 0)
        for node, answer in self.transport.ask(dict.fromkeys(asked, request), deadline_s, most):
            responses.take(node, answer)
        responses.close()
        return responses

    def record(self, ledger: LedgerFile, agreement: Agreement, state: ServerState) -> ServerRecord:
        """Return the record of a round; clients never send losses and scores."""
        arm, tally = agreement.arm, state.tally
        most_rounds = ledger.of(arm.label).most_rounds
        return ServerRecord(
            arm=arm.label,
            round_index=state.round_index,
            loss=math.nan,
            local=math.nan,
            neighbor=math.nan,
            harmonic_mean=math.nan,
            worst_client=math.nan,
            epsilon={str(who): arm.plan.epsilon(who, most_rounds) for who in arm.plan.audiences},
            cohort_size=arm.cohorts.cohort_size,
            num_clients=len(tally.took_part),
            delta=arm.plan.config.delta,
            noise_source=arm.plan.release_plan.noise_source,
            **fields_of(RoundTally, tally),
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
        of_late = {"late": wire.late_fields(made_of)} if made_of.num_late else {}
        meta = {**self.names(agreed), "rounds": state.round_index, **of_late}
        kind = wire.payload_kind_of(agreed.arm, steps)
        request = Envelope("finish", meta, wire.request_tensors(agreed.arm.method, state.shared, kind))
        asked = {members[name].node: name for name in names if name in members}
        responses = self.exchange(agreed, state, request, asked, self.config.federation.round_deadline_s)
        answers = {agreed.clients[client_id]: counts for client_id, counts in responses.messages.items()}
        return {name: counts for name, counts in answers.items() if counts is not None}

    def _summary(self, ledger: LedgerFile, arm: Arm, state: ServerState, told: Mapping[str, NoisyCounts]) -> ArmSummary:
        """Return the run's line of a result table; scores stay with the clients, but for what they told with noise."""
        plan, audience = ledger.spent(arm).plan, arm.plan.config.audience
        has_text = self.model.backbone.capabilities.scores_untrained
        gained = gains.of_clients(self.folder / "summary.json", told, has_text=has_text)
        local = [float(one["local"]) for one in gained]
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
            per_client=gained,
            per_class=[],
            is_open=not self.offer.class_names,
            noise_source=plan.release_plan.noise_source if plan.channels else None,
        )

    def _identity(self, agreement: Agreement) -> RunIdentity:
        """Return what the run is, as far as the server knows: it has no data."""
        return RunIdentity(
            settings=identities.settings_of(self.config.run),
            class_names=agreement.class_names,
            clients=tuple(zip(agreement.clients, agreement.sizes, strict=True)),
            backbone=agreement.backbone,
            versions=identities.versions_of(self.config.run),
        )

    def names(self, agreement: Agreement) -> dict[str, Any]:
        """Return what every message of the run says."""
        return {"federation": agreement.federation, "run": agreement.run, "agreement": agreement.digest}

    def report(self, client: str, node: str, reason: str, **place: int) -> None:
        """Write down who was refused, refused, or did not answer."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = {"time": at, "client": client, "node": node, **place, "reason": plain(reason)}
        files.append_line(self.folder / REFUSALS, json.dumps(line))
