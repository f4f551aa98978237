"""The client's end of a federation: it answers one message at a time, and nothing it did not mean to give leaves it.

Whatever the server asks, the owner's limits hold (`guard`), the agreement of the start holds, and each turn is taken
once: its answer is kept, and the same question gets the same bytes again.
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
from hushprompt.deployment.store import Kept, RunStore
from hushprompt.errors import ConfigError, HushpromptError, ProtocolError
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.runs import records

LOG = logging.getLogger(__name__)
REFUSALS = "refusals.jsonl"
"""In the store: what was refused, with all that the owner may know of why."""


class ClientNode:
    """One client. All that it knows lies in its store, so it may be a new process for every message."""

    def __init__(self, config: ClientConfig) -> None:
        """Take what `client.toml` says; data and model are loaded when a message needs them, once."""
        self.config = config
        self.store = config.store
        self._model: tuple[Any, PromptModel] | None = None
        self._running: ClientRun | None = None
        self._handlers: dict[str, Callable[[Envelope], Envelope]] = {
            "join": self._join,
            "plan": self._plan,
            "turn": lambda request: self._run(request).turn(request),
            "alone": lambda request: self._run(request).alone(request),
            "finish": lambda request: self._run(request).finish(request),
        }

    def answer(self, request: Envelope) -> Envelope:
        """Answer one message; what it may not or cannot do is a refusal, and a line in `refusals.jsonl`.

        What a turn releases is charged to the client's own ledger, on disk, before it is taken; the new personal state
        and the answer are on disk, in one file, before the answer leaves. The same turn asked again gives the same
        answer, bit for bit, and is not charged again.
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
        """Write down a refusal, if the disk takes it, and say what the server may know."""
        LOG.warning("refused %s: %s", request.kind, why)
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "kind": request.kind, "reason": why}
        line |= {key: request.meta[key] for key in ("federation", "run", "round", "step") if key in request.meta}
        try:
            files.append_line(self.store / REFUSALS, json.dumps(line))
        except OSError as error:
            LOG.warning("the refusal could not be written down: %s", error)
        return refusal(told)

    def _join(self, request: Envelope) -> Envelope:
        """Say who this is, if the offer fits what it has."""
        check_version(request.meta, "This client", "the server")
        offer = read_offer(request.meta.get("offer"))
        RunStore(self.store, offer.federation, offer.run)  # their names are names
        self._open_model(offer)
        examples = open_examples(self.config, offer)
        answer = {"client": self.config.client.name, "num_examples": examples.size, "backbone": offer.backbone}
        return Envelope("join", {**version(), **answer})

    def _plan(self, request: Envelope) -> Envelope:
        """Check a plan against the owner's word, and hold on to it before the first turn."""
        check_version(request.meta, "This client", "the server")
        agreement = read_agreement(request.meta.get("agreement"))
        store = RunStore(self.store, agreement.federation, agreement.run)
        pinned = store.pinned()
        if pinned != agreement and store.has_charges:
            raise ProtocolError("Training began under another plan, or what was agreed on is lost: it cannot change.")
        running = self._open(agreement, store)
        policy.check_plan(self.config.owner, running.arm, running.client_id, self.store, store.folder)
        running.load_features()  # now, so that no turn waits for it
        if pinned != agreement:
            store.pin(agreement, Kept(personal=running.first_personal, norm=running.first_norm))
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
        if self._running is None or self._running.agreement != agreement:
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
            self._running = ClientRun(self.config, store, agreement, config, model, examples, client_id)
        return self._running

    def _open_model(self, offer: Offer) -> PromptModel:
        """Load the backbone, once, and see that it is the federation's."""
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


def open_site(config: ClientConfig) -> ClientNode:
    """Open a client's end; its folder is made if it is missing."""
    config.store.mkdir(parents=True, exist_ok=True)
    return ClientNode(config)
