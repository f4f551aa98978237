"""What computes how clients' prompts score examples, each prompt once, and each image once where that can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hushprompt.evaluation.private import in_equal_batches
from hushprompt.federation.questions import Quiz, context_of
from hushprompt.methods.base import Method, NoState, Personal
from hushprompt.methods.context import HasContext
from hushprompt.prompts.generative_model import GenerativeModel
from hushprompt.prompts.prompted_model import PromptedModel
from hushprompt.runs.state import State


@dataclass(frozen=True)
class Scoring:
    """How examples are scored."""

    pool: ThreadPoolExecutor
    """In whose threads each computes alone: last bits must not depend on the number of cores."""
    num_workers: int
    """Of the pool."""
    quiz: Quiz | None
    """What is asked of the examples; None in classification."""
    is_counted: bool
    """Whether counts of right answers get noise, so that no score may depend on how many examples there are."""

    def logits_fn(
        self, method: Method, state: State, model: PromptedModel, features: Float[Tensor, "n *m d"]
    ) -> Callable[[int], Float[Tensor, "n c"]]:
        """Return what computes a client's logits; those of clients with one and the same state are computed once.

        Where examples have questions, it computes measures of the answers in their place.
        """

        def logits(personal: Personal) -> Float[Tensor, "n c"]:
            def score(some: Float[Tensor, "b *m d"]) -> Float[Tensor, "b c"]:
                return method.logits(model, state.shared, personal, some)

            with torch.no_grad():
                return (in_equal_batches(score, features) if self.is_counted else score(features)).cpu()

        counts = Counter(map(_identity, state.personal))
        several = {_identity(personal): personal for personal in state.personal if counts[_identity(personal)] > 1}
        if isinstance(model, GenerativeModel) and (self.quiz is not None or isinstance(method, HasContext)):
            known = self._logits_of_contexts(method, state, model, features)
        else:
            known = dict(zip(several, self.pool.map(logits, several.values()), strict=True))

        def of_client(client_id: int) -> Float[Tensor, "n c"]:
            personal = state.personal[client_id]
            own = known.get(_identity(personal))
            return logits(personal) if own is None else own

        return of_client

    def _logits_of_contexts(
        self, method: Method, state: State, model: GenerativeModel, features: Float[Tensor, "n m e"]
    ) -> dict[int, Float[Tensor, "n c"]]:
        """Return the logits of each state that a client has, as its context alone gives them.

        A worker reads image and question once for all its clients, where the prompt stands behind them. Logits of all
        clients are in memory at once: beside the time that a generative model takes for them, they are few.
        """
        own = {_identity(each): each for each in state.personal}
        groups = [keys for at in range(self.num_workers) if (keys := list(own)[at :: self.num_workers])]

        def score(keys: list[int]) -> Sequence[Float[Tensor, "n c"]]:
            contexts = [context_of(model, method, state.shared, own[key]) for key in keys]
            if self.quiz is not None:
                return (self.quiz.matches if self.is_counted else self.quiz.measures)(contexts, features)
            if self.is_counted:
                return _in_equal_batches(model, contexts, features)
            return model.scores_of_each(contexts, features)

        rows = zip(groups, self.pool.map(score, groups), strict=True)
        return {key: logits.cpu() for keys, each in rows for key, logits in zip(keys, each, strict=True)}


def _in_equal_batches(
    model: GenerativeModel, contexts: Sequence[Float[Tensor, "t e"]], features: Float[Tensor, "n m e"]
) -> Sequence[Float[Tensor, "n c"]]:
    """Score examples with each context, always as many at a time."""

    def score(some: Float[Tensor, "b m e"]) -> Float[Tensor, "b k"]:
        return torch.cat(model.scores_of_each(contexts, some), dim=1)

    return in_equal_batches(score, features).split(model.num_classes, dim=1)


def _identity(personal: Personal) -> int:
    """Return what two clients with one and the same state share."""
    return 0 if isinstance(personal, NoState) else id(personal)
