"""One run at one client: its updates, its privacy charges, its scores, and what it writes at the end."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import torch
from torch import Tensor

from hushprompt import checks, files
from hushprompt.config.schema import RunConfig
from hushprompt.data.partitions.base import Partition
from hushprompt.deployment import client_texts, gains, policy, wire
from hushprompt.deployment.agreement import Agreement
from hushprompt.deployment.config import ClientConfig
from hushprompt.deployment.envelope import Envelope
from hushprompt.deployment.examples import Examples
from hushprompt.deployment.secure_turn import SecureTurn, turn_id
from hushprompt.deployment.store import ClientState, RunStore
from hushprompt.errors import PrivacyError, ProtocolError, ResumeError
from hushprompt.evaluation.evaluate import right_or_not
from hushprompt.evaluation.metrics import accuracy
from hushprompt.evaluation.private import in_equal_batches
from hushprompt.features.store import FeatureFolder
from hushprompt.federation.client import Client, Step
from hushprompt.federation.questions import Quiz, context_of, quiz_of, texts_of
from hushprompt.federation.rounding import check_rounding
from hushprompt.federation.setup import tell_findings
from hushprompt.methods.base import Method, NoState, Shared
from hushprompt.methods.zero_shot import ZeroShot
from hushprompt.privacy.config import Channel
from hushprompt.privacy.ledger import why_not
from hushprompt.privacy.statements import STAYS_AT_HOME
from hushprompt.privacy.system_random import ByteSource
from hushprompt.prompts.prompted_model import PromptedModel
from hushprompt.runs import identity as identities
from hushprompt.runs import manifest, records
from hushprompt.runs.arm import Arm
from hushprompt.runs.identity import RunIdentity
from hushprompt.runs.ledger import LedgerFile
from hushprompt.runs.privacy_record import privacy_record
from hushprompt.runs.prompts import write_prompts
from hushprompt.seeding import stream

NONE_TOLD = Envelope("unmask")
"""Of the seeds of a step no share was told."""


class ClientRun:
    """What a client needs to take part in the run that it agreed on."""

    def __init__(
        self,
        client: ClientConfig,
        store: RunStore,
        agreement: Agreement,
        config: RunConfig,
        model: PromptedModel,
        examples: Examples,
        client_id: int,
    ) -> None:
        """Build the plan; `config` is the agreement's with this client's own runtime."""
        self.client, self.store, self.agreement, self.config = client, store, agreement, config
        self.model, self.examples, self.client_id = model, examples, client_id
        plan = agreement.arm.plan.of_client(client_id)
        self.arm = dataclasses.replace(agreement.arm, plan=plan)
        self.is_late = client_id >= len(agreement.clients) - agreement.num_late
        self.shared, self.first_personal = self.arm.method.init(model, stream(config.seed, "init"))
        norms = self.arm.plan.release_plan.first_norms(len(agreement.sizes))
        self.first_norm = None if norms is None else norms.of(client_id)["local"]
        self.payload_kind = wire.payload_kind_of(self.arm, config.training.local_steps)
        self.classes = agreement.client_classes[client_id] if agreement.client_classes else None

    @functools.cached_property
    def identity(self) -> RunIdentity:
        """What this client trains on, with which model and settings; nothing of it is sent."""
        clients = [(self.client.client.name, self.examples.size)]
        found = identities.identity_of(self.config, self.examples.dataset, clients, self.examples.index)
        return dataclasses.replace(found, backbone=self.model.backbone.fingerprint)

    def keep_identity(self) -> None:
        """Write down what the run begins with, before anything is charged."""
        records.write_json(self.store.folder / identities.FILE, self.identity)

    def tell_findings(self) -> None:
        """Say in one line what the owner should know of the data, and what the guarantee is worth to copies."""
        shard = dataclasses.replace(self.examples.shard, client_id=self.client_id, name=self.client.client.name)
        own = Partition((shard,))
        tell_findings(self.config, self.examples.dataset, own, [self.arm], (self.classes,))

    def check_identity(self) -> None:
        """Raise ResumeError where the run was begun with other data, another model or, if seeded, other versions."""
        identities.IdentityFile(self.store.folder, self.config).check(self.identity)

    def ledger(self) -> LedgerFile:
        """Read what was charged to this client."""
        recorded = identities.read(self.store.folder)
        return LedgerFile(self.store.folder, self.agreement.clients, recorded.digest if recorded else "")

    @functools.cached_property
    def trainer(self) -> Client:
        """The client's side of a round; encodes the images now if they were not encoded before."""
        kind = self.arm.method.feature_kind
        features, labels, index = self.examples.features(self.model, self.config, "train", kind)
        config = self.config
        own = (self.client_id, config.seed, config.training, self.model, {kind: features}, labels, index)
        with client_texts.for_the_owner():
            texts = texts_of(self.model, self.examples.dataset.splits["train"], config)
            if texts is not None:
                client_texts.check_texts(self.model, texts)
        return Client(*own, classes=self.classes, groups=self.examples.groups, texts=texts)

    def update(self, request: Envelope) -> Envelope:
        """Compute one update: the steps between two exchanges with the server, once."""
        state = self.store.load(self.first_personal)
        if request.digest == state.request:
            return state.answer
        if Channel.GLOBAL not in self.arm.plan.channels:
            raise ProtocolError("This method shares nothing: there is no update to send.")
        training, steps = self.config.training, self.arm.plan.sampler.steps_per_round
        at = Step(_whole_number(request, "round", self.arm.num_rounds), _whole_number(request, "step", steps))
        where = f"round {at.round_index + 1}, step {at.step_index + 1}"
        if at <= (state.round_index, state.step):
            raise ProtocolError(f"This client is past {where} already. An update is computed once.")
        is_charged_for = not self.is_late or at.step_index == steps - 1  # a late client makes the last part alone
        is_planned = not at.step_index % training.local_steps and self.client_id in self.arm.cohorts[at.round_index]
        if not (is_planned and is_charged_for):
            raise ProtocolError(f"By the plan this client has no update at {where}.")
        secure = self.secure_turn() if self.arm.plan.release_plan.has_shares else None
        participants = () if secure is None else secure.participants(request, self._cohort(at.round_index))
        shared = wire.read_shared(self.arm.method, self.shared, request.tensors, self.payload_kind)
        norms = self._norms(request, state)
        turn = "" if secure is None else turn_id(request, self.store.state_digest())
        arm = self.arm if secure is None else self._drawing(secure.draws(turn))
        if at.round_index != state.round_index:
            if at.round_index and self.config.evaluation.is_due(at.round_index, self.arm.num_rounds):
                state = self._score(state, shared, at.round_index)
            state = self._begin_round(state, at.round_index, arm, turn)
        batches = state.batches[at.step_index : at.step_index + training.local_steps]
        update = self.trainer.update(arm, shared, norms, state.personal, batches, at, len(participants))
        header = self._header(request, "round", "step")
        if secure is None:
            tensors = wire.update_tensors(update.message, counts=norms is not None)
        else:
            header, tensors = header | {"context": request.digest}, secure.hide(update.message, request, participants)
        answer = wire.check_declared(Envelope("turn", header, tensors))
        norm = state.norm if update.norm is None else update.norm
        state = dataclasses.replace(state, personal=update.personal, norm=norm, step=at.step_index)
        state = dataclasses.replace(state, participants=participants, unmask_request="", unmask_answer=NONE_TOLD)
        self.store.save(dataclasses.replace(state, request=request.digest, answer=answer))
        return answer

    def unmask(self, request: Envelope) -> Envelope:
        """Tell shares of the seeds that a step's sum is masked with, once, after the step's update."""
        state = self.store.load(self.first_personal)
        if request.digest == state.unmask_request:
            return state.unmask_answer
        if not self.arm.plan.release_plan.has_shares:
            raise ProtocolError("By the plan nothing is masked.")
        tensors = self.secure_turn().unmask(request, state)
        answer = Envelope("unmask", self._header(request, "round", "step", "context"), tensors)
        answer = wire.check_declared(answer)
        self.store.save(dataclasses.replace(state, unmask_request=request.digest, unmask_answer=answer))
        return answer

    def alone(self, request: Envelope) -> Envelope:
        """Train all rounds up to one by itself, where nothing is shared; after a crash it goes on where it stopped."""
        if Channel.GLOBAL in self.arm.plan.channels:
            raise ProtocolError("This method shares a prompt: its clients send an update in each round.")
        until = _whole_number(request, "until", self.arm.num_rounds + 1)
        state = self.store.load(self.first_personal)
        for round_index in range(state.round_index + 1, until):
            if self.client_id in self.arm.cohorts[round_index]:
                state = self._begin_round(state, round_index, self.arm)
                norms = self._norms(request, state)
                for step, batch in enumerate(state.batches):
                    at = Step(round_index, step)
                    update = self.trainer.update(self.arm, self.shared, norms, state.personal, [batch], at)
                    state = dataclasses.replace(state, personal=update.personal)
                    if norms is not None and update.norm is not None:
                        state = dataclasses.replace(state, norm=update.norm)
                        norms = self._norms(request, state)
            state = dataclasses.replace(state, round_index=round_index)
            if self.config.evaluation.is_due(round_index + 1, self.arm.num_rounds):
                state = self._score(state, self.shared, round_index + 1)
            self.store.save(state)
        return Envelope("alone", self._header(request, "until"))

    def finish(self, request: Envelope) -> Envelope:
        """Score and write the personal prompt that goes with the last shared one, and what was spent for it."""
        state = self.store.load(self.first_personal)
        if request.digest == state.request:
            self.store.remove_run_key()
            return state.answer
        num_done = _whole_number(request, "rounds", self.arm.num_rounds + 1)
        shared = wire.read_shared(self.arm.method, self.shared, request.tensors, self.payload_kind)
        made_of = wire.read_late(self.agreement, request.meta.get("late"))
        if made_of.num_late:  # what was released since: nobody is charged for it again
            state = dataclasses.replace(state, num_scored=-1)
        state = self._score(state, shared, num_done, made_of.arm.method)
        ledger = self.ledger()
        spent = dataclasses.replace(ledger.spent(self.arm), method=made_of.arm.method)
        write_prompts(
            self.store.folder / "prompts", self.model, spent, shared, {self.client_id: state.personal},
            backbone=self.config.backbone, client_names=self.agreement.clients,
        )  # fmt: skip
        arms, accounts = ledger.outcome([self.arm])
        own = {label: [a for a in of if self.client_id in a.clients] for label, of in accounts.items()}
        statement = {
            **privacy_record(arms, own, in_one_process=False),
            "not_private": STAYS_AT_HOME,
            **gains.statement(self.config),
        }
        records.write_json(self.store.folder / "privacy.json", statement)
        counts = self._counts(state, shared, made_of.arm.method)
        manifest.write(self.store.folder)
        answer = Envelope("finish", self._header(request, "rounds"), counts)
        self.store.save(dataclasses.replace(state, request=request.digest, answer=answer))
        self.store.remove_run_key()
        return answer

    def _counts(self, state: ClientState, shared: Shared, method: Method) -> dict[str, Tensor]:
        """Return noisy counts of right answers before and after, where the plan has them."""
        folder, images = self.store.folder, self._scored_images()
        before, after = self._scorers(state, shared, method)
        if self._quiz is None:
            before = None if before is None else functools.partial(in_equal_batches, before)
            after = functools.partial(in_equal_batches, after)
        scored = before, after
        groups = self.examples.groups_of(self.config.evaluation.split)
        return gains.release(self.config, self.arm, folder, self.client_id, scored, *images, groups)

    @functools.cached_property
    def _quiz(self) -> Quiz | None:
        """What the own evaluation questions are; None where examples have classes."""
        split = self.config.evaluation.split
        with client_texts.for_the_owner():
            quiz = quiz_of(self.model, self.examples.dataset.splits[split], self.config)
            if quiz is not None:
                client_texts.check_texts(quiz.model, quiz.texts)
        return None if quiz is None else quiz.of(self.examples.index[split])

    def _scorers(
        self, state: ClientState, shared: Shared, method: Method
    ) -> tuple[gains.LogitsFn | None, gains.LogitsFn]:
        """Return what scores the own evaluation images before training (None: no text) and after.

        Where they have questions, a score says whether the answer is right.
        """
        quiz = self._quiz
        if quiz is None:
            return gains.zero_shot(self.model), lambda images: method.logits(self.model, shared, state.personal, images)
        before = context_of(quiz.model, ZeroShot(), NoState(), NoState())
        after = context_of(quiz.model, method, shared, state.personal)
        return (
            lambda images: right_or_not(quiz.matches([before], images)[0]),
            lambda images: right_or_not(quiz.matches([after], images)[0]),
        )

    @property
    def feature_folders(self) -> list[FeatureFolder]:
        """Where the features of all own images lie or will lie."""
        splits, kind = ("train", self.config.evaluation.split), self.arm.method.feature_kind
        return [self.examples.folder(self.model, self.config, split, kind) for split in splits]

    def load_features(self) -> None:
        """Encode or find the features of all own images, and check how the model rounds."""
        check_rounding(self.arm, self.model, self.config.runtime.cache_path)
        assert self.trainer
        self._scored_images()

    def secure_turn(self) -> SecureTurn:
        """Return what masks and unmasks; the run key is read each time, so that it is gone when its file is."""
        return SecureTurn.of(self.agreement, self.client.client.name, self.store, self.arm.plan.terms())

    def _cohort(self, round_index: int) -> list[str]:
        """Return the names of a round's clients, in the order of the plan."""
        return [self.agreement.clients[client_id] for client_id in sorted(self.arm.cohorts[round_index].tolist())]

    def _drawing(self, read: ByteSource) -> Arm:
        """Return the arm with another source of secure bytes, for one turn."""
        release_plan = dataclasses.replace(self.arm.plan.release_plan, read=read)
        return dataclasses.replace(self.arm, plan=dataclasses.replace(self.arm.plan, release_plan=release_plan))

    def _begin_round(self, state: ClientState, round_index: int, arm: Arm, turn: str = "") -> ClientState:
        """Charge a round, on disk, then draw its batches from the arm's source.

        Args:
            state: before the round.
            round_index: of the round.
            arm: with the source of this turn's draws.
            turn: what its draws follow from, if they can be had again: charged for it before, it is the same turn.

        Raises:
            PrivacyError: the run's budget or the owner's forbids it; nothing is charged.
            ResumeError: the ledger was lost or cut.
        """
        plan, owner = self.arm.plan, self.client.owner
        ledger = self.ledger()
        charged = ledger.of(self.arm.label)
        num_charged = charged.rounds(self.client_id)
        if num_charged < state.num_rounds:
            raise ResumeError(f"The ledger in {self.store.folder} lacks rounds: what was spent is not known.")
        is_same = plan.release_plan.is_replay_exact or (turn != "" and turn == ledger.last_turn)
        charge = charged.due(round_index, [self.client_id], is_replay_exact=is_same)
        if charge is not None:
            reason = why_not(plan, charged, charge)
            if reason is not None:
                raise PrivacyError(reason)
            spent = policy.total(owner, plan, num_charged + 1, self.client_id, self.client.store, self.store.folder)
            ledger.charge(self.arm, round_index, charge.clients, spent, turn)
        batches = tuple(self.trainer.batches(arm, round_index))
        return dataclasses.replace(state, round_index=round_index, num_rounds=state.num_rounds + 1, batches=batches)

    def _norms(self, request: Envelope, state: ClientState) -> dict[str, float] | None:
        """Return the clip norms of an update where they are adaptive: the server's, and the client's own.

        The own one stops at the owner's limit. A refusal would tell the server how it moved, which is a release for
        the holder of the personal prompt alone.

        Raises:
            ProtocolError: the server sent none.
            PrivacyError: the server's is above what the owner allows.
        """
        if state.norm is None:
            return None
        owner = self.client.owner
        norms = {"local": min(state.norm, owner.max_clip_norm_local), "global": 1.0}
        if Channel.GLOBAL in self.arm.plan.channels:
            norm = request.meta.get("clip_norm")
            smallest, largest = checks.CLIP_NORMS
            if type(norm) is not float or not smallest <= norm <= largest:
                raise ProtocolError(
                    f"An update of this plan needs a clip norm from {smallest:g} to {largest:g}, got {norm!r}."
                )
            if norm > owner.max_clip_norm_global:
                raise PrivacyError(f"The global clip norm came to {norm:.4g}, above {owner.max_clip_norm_global:g}.")
            norms["global"] = norm
        return norms

    def _score(self, state: ClientState, shared: Shared, num_done: int, method: Method | None = None) -> ClientState:
        """Score the own images after `num_done` rounds, once, into a file of this client; None: the plan's method."""
        if num_done == state.num_scored:
            return state
        features, labels = self._scored_images()
        before, after = self._scorers(state, shared, method or self.arm.method)
        with torch.no_grad():
            logits = after(features).cpu()
        rounds = self.ledger().of(self.arm.label).rounds(self.client_id)
        line = {
            "num_rounds": num_done,
            "split": self.config.evaluation.split,
            "num_images": len(labels),
            "accuracy": accuracy(logits, labels),
            "zero_shot": gains.own_accuracy(before, features, labels),
            "epsilon": policy.epsilon(self.arm.plan, rounds, self.client_id),
            "delta": self.arm.plan.config.delta,
            "noise_source": self.arm.plan.release_plan.noise_source,
        }
        records.truncate_records(self.store.records_path, state.records_size)
        size = files.append_line(self.store.records_path, json.dumps(records.to_json(line)))
        return dataclasses.replace(state, records_size=size, num_scored=num_done)

    def _scored_images(self) -> tuple[Any, Any]:
        """Return features and labels of the own evaluation images; where they have questions, 1 for right."""
        kind, split = self.arm.method.feature_kind, self.config.evaluation.split
        features, labels, index = self.examples.features(self.model, self.config, split, kind)
        own = labels[index] if self._quiz is None else torch.ones_like(labels[index])
        return features.as_stored()[index].float().to(self.model.device), own

    def _header(self, request: Envelope, *place: str) -> dict[str, Any]:
        """Return what every answer states: whose it is, and to which request."""
        own = {"client": self.client.client.name, "agreement": self.agreement.digest}
        return own | {key: request.meta[key] for key in place}


def _whole_number(request: Envelope, key: str, end: int) -> int:
    """Return a whole number of a message, at least 0 and below `end`; ProtocolError if there is none."""
    value = request.meta.get(key)
    if type(value) is not int or not 0 <= value < end:
        raise ProtocolError(f"{key} of a message must be a whole number from 0 to {end - 1}, got {value!r}.")
    return value
