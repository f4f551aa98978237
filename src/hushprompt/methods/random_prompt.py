"""An untrained context: where every learned prompt starts, and what noise alone leaves of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from hushprompt.methods.base import NoState, Untrained
from hushprompt.methods.context import ContextConfig
from hushprompt.prompts.prompted_model import PromptedModel
from hushprompt.registry import METHODS


@dataclass(frozen=True)
class RandomContext:
    """A context that is never trained."""

    context: Float[Tensor, "*c t e"]


@METHODS.register("random_prompt")
@dataclass(frozen=True, kw_only=True)
class RandomPrompt(Untrained, ContextConfig):
    """A random context, or the initial words, never trained: where every learned prompt starts."""

    title: ClassVar[str] = "untrained context"
    needs_two_towers: ClassVar[bool] = False

    def init(self, model: PromptedModel, rng: np.random.Generator) -> tuple[RandomContext, NoState]:
        """Return the context."""
        return RandomContext(self.first_context(model, rng)), NoState()

    def context(self, shared: RandomContext, personal: NoState) -> Float[Tensor, "*c t e"]:
        """Return the context."""
        return shared.context
