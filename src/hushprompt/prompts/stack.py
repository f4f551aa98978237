"""Clients that go through the text tower together: their contexts stacked on one axis, their examples side by side.

Every client's work runs on a thread of its own, as it would alone, with a model of its own whose text passes wait for
those of the others. So no method knows of it. What a client gets is what it would get alone, up to rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from hushprompt.models.base import TextPass
from hushprompt.prompts.prompt_model import NamePosition, PromptModel
from hushprompt.prompts.rendezvous import AnswerAll, Rendezvous

T = TypeVar("T")


def run_stacked(model: PromptModel, works: Sequence[Callable[[PromptModel], T]], memory_mb: int) -> list[T]:
    """Do the work of several clients together, and give what each of it gives.

    Args:
        model: frozen backbone and class names.
        works: one for each client; takes the model to use.
        memory_mb: what the backward passes of one client may take.

    Raises:
        Exception: what the first work raised that failed; the others have come to their ends by then.
    """
    stack = _Stack(model, len(works))

    def do(place: int, work: Callable[[PromptModel], T]) -> T:
        try:
            return work(model.asking(functools.partial(stack.read, place), memory_mb))
        finally:
            stack.rendezvous.leave()

    with ThreadPoolExecutor(len(works), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running = [pool.submit(do, place, work) for place, work in enumerate(works)]
        stack.rendezvous.answer_until_all_left()  # here, where memory that earlier stacks had is at hand
        return [each.result() for each in running]


class _Stack:
    """What the clients of a stack have in common."""

    def __init__(self, model: PromptModel, num_clients: int) -> None:
        """Wait for so many clients."""
        self.rendezvous = Rendezvous(num_clients)
        self._model = model

    def read(self, place: int, context: Float[Tensor, "*c t e"], name_position: NamePosition) -> ClientPass:
        """Return one client's pass, made with those of the others that ask for one of this form."""

        def read_all(contexts: Sequence[Tensor]) -> list[tuple[Joint, int]]:
            return self._read_all(contexts, name_position)

        topic = ("read", name_position, context.shape)
        joint, slot = self.rendezvous.ask(place, topic, read_all, context)
        return ClientPass(self.rendezvous, place, joint, slot)

    def _read_all(
        self, contexts: Sequence[Float[Tensor, "*c t e"]], name_position: NamePosition
    ) -> list[tuple[Joint, int]]:
        """Read one context for all, all of them stacked, or one after the other; say where in it each client is."""
        model, first = self._model, contexts[0]
        if all(torch.equal(context, first) for context in contexts[1:]):
            return [(OneContext(model.text_pass(first, name_position)), 0)] * len(contexts)
        if not model.can_stack(first, name_position):
            return [(OneContext(model.text_pass(context, name_position)), 0) for context in contexts]
        stacked = ManyContexts(model.stacked_pass(torch.stack(list(contexts)), name_position))
        return [(stacked, slot) for slot in range(len(contexts))]


class Asked(NamedTuple):
    """What one client wants pulled back."""

    slot: int
    """Which of the contexts is its own."""
    cotangents: tuple[Tensor, ...]
    """What `pull_back` or `pull_back_matrices` takes, with one row for each example."""


class OneContext:
    """A pass that several clients use with one and the same context: their examples are those of one batch."""

    def __init__(self, text_pass: TextPass) -> None:
        """Take a pass."""
        self._pass = text_pass

    def features(self, slot: int) -> Float[Tensor, "c d"]:
        """Return the text features."""
        return self._pass.features

    def pull(self, way: str, asked: Sequence[Asked]) -> Sequence[Float[Tensor, "b *c t e"]]:
        """Pull the examples of all clients back at once."""
        together = map(torch.cat, zip(*(each.cotangents for each in asked), strict=True))
        rows: Tensor = getattr(self._pass, way)(*together)
        return rows.split([len(each.cotangents[0]) for each in asked])

    def for_many(self, num_examples: Sequence[float]) -> list[OneContext]:
        """Let the pass choose its way; all clients say the same public number."""
        return [OneContext(self._pass.for_many(num_examples[0]))] * len(num_examples)


class ManyContexts:
    """A pass over the contexts of several clients: each step of it takes one example of every client."""

    def __init__(self, text_pass: TextPass) -> None:
        """Take a pass whose features are [s, c, d]."""
        self._pass = text_pass

    def features(self, slot: int) -> Float[Tensor, "c d"]:
        """Return the text features of one context."""
        return self._pass.features[slot]

    def pull(self, way: str, asked: Sequence[Asked]) -> Sequence[Float[Tensor, "b *c t e"]]:
        """Pull the examples of all clients back at once; the smaller batches are filled up with zeros."""
        counts = [len(each.cotangents[0]) for each in asked]
        filled = [
            part.new_zeros(max(counts), len(self._pass.features), *part.shape[1:]) for part in asked[0].cotangents
        ]
        for each, count in zip(asked, counts, strict=True):
            for whole, part in zip(filled, each.cotangents, strict=True):
                whole[:count, each.slot] = part
        rows: Tensor = getattr(self._pass, way)(*filled)
        return [rows[:count, each.slot] for each, count in zip(asked, counts, strict=True)]

    def for_many(self, num_examples: Sequence[float]) -> list[ManyContexts]:
        """Stay as it is: what pays for many examples of one context does not pay here."""
        return [self] * len(num_examples)


Joint = OneContext | ManyContexts


class ClientPass:
    """One client's view of a pass; asks together with the others."""

    def __init__(self, rendezvous: Rendezvous, place: int, joint: Joint, slot: int) -> None:
        """Look at one of the contexts."""
        self._rendezvous, self._place, self._joint, self._slot = rendezvous, place, joint, slot
        self.features = joint.features(slot)

    def pull_back(self, weights: Float[Tensor, "b c"], directions: Float[Tensor, "b d"]) -> Float[Tensor, "b *c t e"]:
        """Return each example's gradient in the client's context."""
        return self._pull("pull_back", weights, directions)

    def pull_back_matrices(self, cotangents: Float[Tensor, "b c d"]) -> Float[Tensor, "b *c t e"]:
        """Multiply each cotangent, of whatever rank, with the Jacobian of the client's text features."""
        return self._pull("pull_back_matrices", cotangents)

    def for_many(self, num_examples: float) -> ClientPass:
        """Let the pass choose its way."""
        joint = self._ask(("for_many", num_examples), self._joint.for_many, num_examples)
        return ClientPass(self._rendezvous, self._place, joint, self._slot)

    def _pull(self, way: str, *cotangents: Tensor) -> Tensor:
        """Ask for gradients."""
        rows: Tensor = self._ask((way,), functools.partial(self._joint.pull, way), Asked(self._slot, cotangents))
        return rows

    def _ask(self, topic: tuple[Hashable, ...], answer_all: AnswerAll, content: Any) -> Any:
        """Ask something of this very pass."""
        return self._rendezvous.ask(self._place, (self._joint, *topic), answer_all, content)
