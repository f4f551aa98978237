"""The client node of a federation: answers one message of the server at a time.

Whatever the server asks, the owner's limits hold (`policy`) and so does the agreement of the start. Each update is
computed once: its answer is stored, and the same request gets the same bytes again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hushprompt import files
from hushprompt.config.schema import RunConfig
from hushprompt.deployment import client_features, client_texts, policy, roster, wire
from hushprompt.deployment.agreement import (
    Agreement,
    Offer,
    check_version,
    open_model,
    read_agreement,
    read_offer,
    version,
)
from hushprompt.deployment.client_run import ClientRun
from hushprompt.deployment.config import CACHE, MOST_REFUSALS, REFUSALS, ClientConfig
from hushprompt.deployment.envelope import Envelope, refusal
from hushprompt.deployment.examples import open_examples
from hushprompt.deployment.server_record import AGREEMENT
from hushprompt.deployment.store import ClientState, RunStore
from hushprompt.deployment.transport import plain
from hushprompt.errors import ConfigError, HushpromptError, ProtocolError
from hushprompt.prompts.prompted_model import PromptedModel
from hushprompt.runs import records
from hushprompt.words import counted

LOG = logging.getLogger(__name__)
CANNOT = "This client cannot do that now; its owner can see why."
"""What the server is told of files, data, and errors that nobody expected."""


class ClientNode:
    """One client. All of its state is in its store, so each message may be answered by a new process."""

    def __init__(self, config: ClientConfig) -> None:
        """Hold the config; data and model are loaded once, when a message first needs them."""
        self.config = config
        self.store = config.store
        self._model: tuple[Any, PromptedModel] | None = None
        self._current: ClientRun | None = None
        self._handlers: dict[str, Callable[[Envelope], Envelope]] = {
            "join": self._join,
            "check": self._check,
            "plan": self._plan,
            "turn": lambda request: self._run(request).update(request),
            "unmask": lambda request: self._run(request).unmask(request),
            "alone": lambda request: self._run(request).alone(request),
            "finish": lambda request: self._run(request).finish(request),
        }

    def answer(self, request: Envelope) -> Envelope:
        """Answer one message; what it may not or cannot do gets a refusal, and a line in `refusals.jsonl`.

        What an update releases is charged to the client's own ledger, on disk, before it is computed; the new
        personal state and the answer are on disk, in one file, before the answer is sent. The same request
        again gets the same answer, bit for bit, and is not charged again.
        """
        try:
            if request.kind not in self._handlers:
                raise ProtocolError(f"A client does not know the message {request.kind!r}.")
            with records.locked(self.store):
                return wire.check_declared(self._handlers[request.kind](request))
        except (ProtocolError, ConfigError) as error:  # about messages and plans: the server may know
            return self.refuse(request.kind, str(error), str(error), request.meta)
        except OSError as error:
            return self.refuse(request.kind, str(error), f"This client's disk: {error.strerror}.", request.meta)
        except Exception as error:  # about files and data, which are nobody's business; or whatever a message caused
            if not isinstance(error, HushpromptError):
                LOG.exception("The message %r could not be answered.", request.kind)
            return self.refuse(request.kind, str(error) or type(error).__name__, CANNOT, request.meta)

    def prepare(self) -> None:
        """Load model, plan and features of the run that was agreed on last, if there is one, before a message comes.

        For a process that is kept ready: what answers the next message then loads nothing.
        """
        found = sorted(self.store.glob(f"*/*/{AGREEMENT}"), key=lambda path: path.stat().st_mtime)
        if found:
            folder = found[-1].parent
            store = RunStore(self.store, folder.parent.name, folder.name)
            pinned = store.pinned()
            assert pinned is not None
            self._open(pinned, store).load_features()

    def refuse(self, kind: str, why: str, told: str = "", meta: Mapping[str, Any] | None = None) -> Envelope:
        """Record a refusal, if the disk can be written, and return what the server may know.

        Args:
            kind: of the message.
            why: in full, for the owner.
            told: for the server; empty: the same.
            meta: of the message, which may be anything.
        """
        LOG.warning("refused %s: %s", plain(kind), plain(why))
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line: dict[str, Any] = {"time": at, "kind": plain(kind), "reason": plain(why)}
        for key in ("federation", "run", "round", "step"):
            if isinstance(value := (meta or {}).get(key), int | str):
                line[key] = plain(value) if isinstance(value, str) else value
        try:
            files.append_line(self.store / REFUSALS, json.dumps(line), MOST_REFUSALS)
        except OSError as error:
            LOG.warning("the refusal could not be written down: %s", error)
        return refusal(plain(told or why))

    def _join(self, request: Envelope) -> Envelope:
        """Return the client's name and size, if the offer fits its data and model."""
        check_version(request.meta, "This client", "the server")
        offer = read_offer(request.meta.get("offer"))
        store = RunStore(self.store, offer.federation, offer.run)  # refuses names that are paths
        self._open_model(offer)
        size = open_examples(self.config, offer).size
        answer = {"client": self.config.client.name, "num_examples": size, "backbone": offer.backbone}
        key, signature = self._signed_key(offer, store, size)
        return Envelope("join", {**version(), **answer, "key": key, "signature": signature})

    def _check(self, request: Envelope) -> Envelope:
        """Check a plan as `_plan` does, and store nothing: for a look at what would be agreed on."""
        agreement, _, store = self._allowed(request)
        if store.pinned() is None:
            store.remove_run_key()
        return Envelope("check", {"agreement": agreement.digest})

    def _plan(self, request: Envelope) -> Envelope:
        """Check a plan against the owner's policy, and store it before the first update."""
        agreement, run, store = self._allowed(request)
        client_features.make_room(self.store, run.feature_folders)
        run.load_features()  # now, so that no update waits for it
        if store.pinned() != agreement:
            store.make_room()
            run.keep_identity()
            run.tell_findings()
            store.pin(agreement, ClientState(personal=run.first_personal, norm=run.first_norm))
        return Envelope("plan", {"agreement": agreement.digest})

    def _allowed(self, request: Envelope) -> tuple[Agreement, ClientRun, RunStore]:
        """Return the plan that a message proposes and its run, if the owner allows it."""
        check_version(request.meta, "This client", "the server")
        agreement = read_agreement(request.meta.get("agreement"))
        store = RunStore(self.store, agreement.federation, agreement.run)
        if store.has_charges and store.pinned() != agreement:
            raise ProtocolError("Training began under another plan, or what was agreed on is lost: it cannot change.")
        run = self._open(agreement, store)
        if run.arm.plan.release_plan.has_shares:
            self._check_roster(agreement, run)
        evaluation = run.config.evaluation
        policy.check_plan(self.config.owner, run.arm, evaluation, run.client_id, self.store, store.folder)
        client_texts.check_plan(run.model, run.config)
        client_features.check_size(self.config.owner, run.feature_folders)
        return agreement, run, store

    def _signed_key(self, offer: Offer, store: RunStore, size: int) -> tuple[str, str]:
        """Return the public run key and this client's signature of it, in hex; "" where the run needs none.

        The key is made at the first invitation and stays until the run is finished; of a run that was, what was said
        then is said again.
        """
        if offer.run_config.privacy.noise_at != "shares":
            return "", ""
        name, key, pinned = self.config.client.name, store.run_key(), store.pinned()
        if key is None and pinned is not None and pinned.keys:
            place = pinned.clients.index(name)
            return pinned.keys[place], pinned.signatures[place]
        roster.check_link(self.config.link)
        with client_texts.for_the_owner():
            identity = roster.read_identity(Path(self.config.link.key))
            roster.pinned_keys(self.config)  # now, so that no plan fails for it
        if key is None:
            key = roster.new_run_key()
            store.make_room()
            store.make_run_key(key)
        public = roster.public_half(key)
        return public.hex(), roster.sign(identity, roster.claim(offer, name, size, public)).hex()

    def _check_roster(self, agreement: Agreement, run: ClientRun) -> None:
        """Refuse a plan with a client that the owner did not pin, or whose run key is not its own, this one's included.

        Raises:
            ProtocolError: with what is wrong.
        """
        with client_texts.for_the_owner():
            keys = roster.pinned_keys(self.config)
        roster.check_members(agreement, keys)
        roster.pair_secrets(agreement, run.secure_turn().run_key, agreement.clients)

    def _run(self, request: Envelope) -> ClientRun:
        """Return the run that a message is about, if it is the one that was agreed on."""
        names = request.meta.get("federation"), request.meta.get("run")
        if not all(isinstance(name, str) for name in names):
            raise ProtocolError("A message must name its federation and its run.")
        store = RunStore(self.store, *map(str, names))
        pinned = store.pinned()
        if pinned is None:
            raise ProtocolError("This client agreed to no such run, or lost what it kept of it.")
        if request.meta.get("agreement") != pinned.digest:
            raise ProtocolError("This message is about another plan than the one that was agreed on.")
        return self._open(pinned, store)

    def _open(self, agreement: Agreement, store: RunStore) -> ClientRun:
        """Load what a run needs, once."""
        if self._current is None or self._current.agreement != agreement:
            name = self.config.client.name
            if name not in agreement.clients:
                raise ProtocolError(f"The plan has no client {name!r}.")
            model = self._open_model(agreement)
            examples = open_examples(self.config, agreement)
            client_id = agreement.clients.index(name)
            if agreement.sizes[client_id] != examples.size:
                unit = f"training {agreement.run_config.privacy.unit_word}"
                raise ProtocolError(
                    f"The plan counts {counted(agreement.sizes[client_id], unit)} of {name}, which has {examples.size}."
                )
            config = self._own_runtime(agreement)
            run = ClientRun(self.config, store, agreement, config, model, examples, client_id)
            if store.has_charges:
                run.check_identity()
            self._current = run
        return self._current

    def _open_model(self, offer: Offer) -> PromptedModel:
        """Load the backbone once; ProtocolError unless it is the federation's."""
        key = (offer.backbone, offer.class_names)
        if self._model is None or self._model[0] != key:
            model = open_model(self._own_runtime(offer), offer.class_names)
            if model.backbone.fingerprint != offer.backbone:
                raise ProtocolError(
                    f"This client's backbone has the fingerprint {model.backbone.fingerprint[:12]}..., the "
                    f"federation's {offer.backbone[:12]}...: other weights, tokenizer or preprocessing."
                )
            self._model = (key, model)
        return self._model[1]

    def _own_runtime(self, offer: Offer) -> RunConfig:
        """Return the run's config with this client's runtime and backbone.

        On the server's word alone only a model that the package has in it is loaded: any other names files, or a place
        to fetch them from, which are for the owner to choose.

        Raises:
            ProtocolError: the federation's model is another one, and the owner named none.
        """
        runtime = self.config.runtime
        if not runtime.cache_dir:
            runtime = dataclasses.replace(runtime, cache_dir=str(self.store / CACHE))
        backbone = self.config.backbone or offer.run_config.backbone
        if self.config.backbone is None and not getattr(backbone, "is_embedded", False):
            raise ProtocolError(
                f"The federation's backbone is {backbone!r}, which reads or fetches files. This client's owner has to "
                "choose it, as [backbone] in client.toml."
            )
        return dataclasses.replace(offer.run_config, runtime=runtime, backbone=backbone)


def open_client_node(config: ClientConfig) -> ClientNode:
    """Return a client node; its folder is created if it is missing.

    Raises:
        ConfigError: others can read the folder.
    """
    files.own_folder(config.store)
    return ClientNode(config)
