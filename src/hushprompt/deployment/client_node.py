"""The client node of a federation: answers one message of the server at a time.

Whatever the server asks, the owner's limits hold (`policy`) and so does the agreement of the start. Each update is
computed once: its answer is stored, and the same request gets the same bytes again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable
from typing import Any

from hushprompt import files
from hushprompt.config.schema import RunConfig
from hushprompt.deployment import policy
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
from hushprompt.deployment.config import ClientConfig
from hushprompt.deployment.envelope import Envelope, refusal
from hushprompt.deployment.examples import open_examples
from hushprompt.deployment.server_record import AGREEMENT
from hushprompt.deployment.store import ClientState, RunStore
from hushprompt.errors import ConfigError, HushpromptError, ProtocolError
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.runs import records

LOG = logging.getLogger(__name__)
REFUSALS = "refusals.jsonl"
"""File in the store: what was refused and why, in full, for the owner alone."""


class ClientNode:
    """One client. All of its state is in its store, so each message may be answered by a new process."""

    def __init__(self, config: ClientConfig) -> None:
        """Hold the config; data and model are loaded once, when a message first needs them."""
        self.config = config
        self.store = config.store
        self._model: tuple[Any, PromptModel] | None = None
        self._current: ClientRun | None = None
        self._handlers: dict[str, Callable[[Envelope], Envelope]] = {
            "join": self._join,
            "plan": self._plan,
            "turn": lambda request: self._run(request).update(request),
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
                return self._handlers[request.kind](request)
        except (ProtocolError, ConfigError) as error:  # about messages and plans: the server may know
            return self._refuse(request, str(error), str(error))
        except HushpromptError as error:  # about files and data, which are nobody's business
            return self._refuse(request, str(error), "This client cannot do that now; its owner can see why.")
        except OSError as error:
            return self._refuse(request, str(error), f"This client's disk: {error.strerror}.")

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

    def _refuse(self, request: Envelope, why: str, told: str) -> Envelope:
        """Record a refusal, if the disk can be written, and return what the server may know."""
        LOG.warning("refused %s: %s", request.kind, why)
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "kind": request.kind, "reason": why}
        line |= {key: request.meta[key] for key in ("federation", "run", "round", "step") if key in request.meta}
        try:
            files.append_line(self.store / REFUSALS, json.dumps(line))
        except OSError as error:
            LOG.warning("the refusal could not be written down: %s", error)
        return refusal(told)

    def _join(self, request: Envelope) -> Envelope:
        """Return the client's name and size, if the offer fits its data and model."""
        check_version(request.meta, "This client", "the server")
        offer = read_offer(request.meta.get("offer"))
        RunStore(self.store, offer.federation, offer.run)  # refuses names that are paths
        self._open_model(offer)
        examples = open_examples(self.config, offer)
        answer = {"client": self.config.client.name, "num_examples": examples.size, "backbone": offer.backbone}
        return Envelope("join", {**version(), **answer})

    def _plan(self, request: Envelope) -> Envelope:
        """Check a plan against the owner's policy, and store it before the first update."""
        check_version(request.meta, "This client", "the server")
        agreement = read_agreement(request.meta.get("agreement"))
        store = RunStore(self.store, agreement.federation, agreement.run)
        pinned = store.pinned()
        if pinned != agreement and store.has_charges:
            raise ProtocolError("Training began under another plan, or what was agreed on is lost: it cannot change.")
        run = self._open(agreement, store)
        policy.check_plan(self.config.owner, run.arm, run.client_id, self.store, store.folder)
        run.load_features()  # now, so that no update waits for it
        if pinned != agreement:
            run.keep_identity()
            store.pin(agreement, ClientState(personal=run.first_personal, norm=run.first_norm))
        return Envelope("plan", {"agreement": agreement.digest})

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
                raise ProtocolError(
                    f"The plan counts {agreement.sizes[client_id]} training examples of {name}, which has "
                    f"{examples.size}."
                )
            config = self._own_runtime(agreement)
            run = ClientRun(self.config, store, agreement, config, model, examples, client_id)
            if store.has_charges:
                run.check_identity()
            self._current = run
        return self._current

    def _open_model(self, offer: Offer) -> PromptModel:
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
        """Return the run's config with this client's runtime, and its own files of the backbone where it names them."""
        runtime = self.config.runtime
        if not runtime.cache_dir:
            runtime = dataclasses.replace(runtime, cache_dir=str(self.store / "cache"))
        backbone = self.config.backbone or offer.run_config.backbone
        return dataclasses.replace(offer.run_config, runtime=runtime, backbone=backbone)


def open_client_node(config: ClientConfig) -> ClientNode:
    """Return a client node; its folder is created if it is missing."""
    config.store.mkdir(parents=True, exist_ok=True)
    return ClientNode(config)
