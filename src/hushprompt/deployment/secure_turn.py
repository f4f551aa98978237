"""A client's side of secure aggregation in one run: what it refuses, how it masks, and what it tells to open a sum.

The server may send anything to anybody. What a client checks of itself is all that its protection rests on:

1. of a plan (`roster.py`, `policy.py`): who takes part, by keys that the owner pinned;
2. of a turn: that enough clients of the round take part, in order, this one among them; a place is taken once;
3. of an unmasking: that it is about the last turn, and the first list of who answered; the same list again gets the
   same bytes;
4. of boxes: what cannot be opened is left out, and everything if too few are left.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from hushprompt.deployment import masks, rescue, roster, wire
from hushprompt.deployment.agreement import Agreement
from hushprompt.deployment.envelope import Envelope, fingerprint
from hushprompt.deployment.store import ClientState, RunStore
from hushprompt.errors import ProtocolError
from hushprompt.privacy.shares import ShareTerms
from hushprompt.privacy.system_random import ByteSource
from hushprompt.words import counted


def turn_id(request: Envelope, state: bytes) -> str:
    """Return what a turn is made from, as one digest: the whole request, and the digest of the state before it."""
    return hashlib.sha256(fingerprint(request) + state).hexdigest()


@dataclass(frozen=True, kw_only=True)
class SecureTurn:
    """What one client needs for the turns of a run."""

    agreement: Agreement
    name: str
    run_key: bytes
    """The private one."""
    terms: ShareTerms

    @classmethod
    def of(cls, agreement: Agreement, name: str, store: RunStore, terms: ShareTerms) -> SecureTurn:
        """Return it for a run whose key is still there.

        Raises:
            ProtocolError: the run key is gone, or is not the one that was agreed on.
        """
        key = store.run_key()
        agreed = agreement.keys[agreement.clients.index(name)]
        if key is None:
            raise ProtocolError(
                f"The run key of {name} is gone: the run was finished here, or its store was lost. It takes no part in "
                "this run any more."
            )
        if roster.public_half(key).hex() != agreed:
            raise ProtocolError(f"The plan has another run key of {name} than its own.")
        return cls(agreement=agreement, name=name, run_key=key, terms=terms)

    def participants(self, request: Envelope, cohort: Sequence[str]) -> tuple[str, ...]:
        """Return who takes part in a step.

        Args:
            request: the turn.
            cohort: names of the clients of the round, in the order of the plan.

        Raises:
            ProtocolError: they are no clients of the round, in order, each once, with this client; or fewer than the
                plan's least.
        """
        return self._named(request, "participants", cohort, "clients of this round")

    def answered(self, request: Envelope, participants: Sequence[str]) -> tuple[str, ...]:
        """Return who answered a step, by a message that asks to unmask its sum.

        Raises:
            ProtocolError: they are no participants, in order, each once, with this client; or fewer than the plan's
                least.
        """
        return self._named(request, "answered", participants, "participants of this step")

    def draws(self, turn: str) -> ByteSource:
        """Return the source of a turn's batch and noise: the same for the same request on the same state.

        It is keyed by the run key, the whole request and the state, so that a turn that is computed again, after a
        crash or on a store that was brought back, is the same turn, and any other turn has draws of its own.

        Args:
            turn: as `turn_id` gives it.
        """
        return masks.keyed_bytes(self.run_key, bytes.fromhex(turn), "draws")

    def hide(
        self, vector: Int64[np.ndarray, " l"], request: Envelope, participants: Sequence[str]
    ) -> dict[str, Tensor]:
        """Return the tensors of an answer: the vector under its masks and, with rescue, boxes for all participants."""
        own, context, pairs = participants.index(self.name), fingerprint(request), self._pairs(participants)
        seeds = {place: masks.pair_seed(pair, context, own, place) for place, pair in enumerate(pairs) if place != own}
        sealed: dict[str, Tensor] = {}
        if self.terms.rescue:
            seeds[own] = os.urandom(masks.SEED)  # not of the run key: it must not come again
            boxes = rescue.make_boxes(seeds, pairs, context, own, self.terms.least)
            sealed = {"sealed": torch.from_numpy(boxes)}
        return {wire.MASKED: torch.from_numpy(masks.mask(vector, own, seeds)), **sealed}

    def unmask(self, request: Envelope, state: ClientState) -> dict[str, Tensor]:
        """Return shares of the seeds that a step's sum is masked with, for one list of who answered.

        Args:
            request: names who answered, and has the boxes that they made for this client.
            state: after the turn.

        Raises:
            ProtocolError: by the plan nothing is ever unmasked; the message is not about the turn that was taken last;
                shares of it were given for another message; the list is none; or too few boxes can be opened.
        """
        if not self.terms.rescue:
            raise ProtocolError("By the plan nothing is ever unmasked: a sum opens by itself, over all participants.")
        at = {"round": state.round_index, "step": state.step, "context": state.request}
        if state.answer.kind != "turn" or any(request.meta.get(key) != value for key, value in at.items()):
            raise ProtocolError("This message is not about the turn that this client took last.")
        if state.unmask_request:
            raise ProtocolError(
                "Shares of this turn were given for another list of who answered: one list is answered."
            )
        participants = state.participants
        names = self.answered(request, participants)
        answered = [participants.index(name) for name in names]
        like = torch.empty(len(answered), rescue.box_size(len(participants)), dtype=torch.uint8)
        wire.check_like(request.tensors, {"sealed": like}, "A request")
        own, context = participants.index(self.name), bytes.fromhex(state.request)
        boxes, pairs = request.tensors["sealed"].numpy(), self._pairs(participants)
        return {"shares": torch.from_numpy(rescue.give_shares(boxes, pairs, context, own, answered, self.terms.least))}

    def _named(self, request: Envelope, key: str, allowed: Sequence[str], whose: str) -> tuple[str, ...]:
        """Return names of a message that are some of the allowed ones, in their order, this client's among them."""
        names = request.meta.get(key)
        if (
            not isinstance(names, list)
            or not all(isinstance(name, str) for name in names)
            or names != [name for name in allowed if name in set(names)]
            or self.name not in names
        ):
            raise ProtocolError(f"{key} of a message must be {whose}, each once, in order, with {self.name}.")
        if len(names) < self.terms.least:
            raise ProtocolError(
                f"{key} of a message are {counted(len(names), 'client')}, and the plan needs {self.terms.least}: a sum "
                "of fewer hides nobody."
            )
        return tuple(names)

    def _pairs(self, participants: Sequence[str]) -> list[bytes]:
        """Return the pair secrets with the participants, in order."""
        return list(roster.pair_secrets(self.agreement, self.run_key, participants).values())
