"""An untrained random context: where every learned prompt starts, and what noise alone leaves of one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from hushprompt import checks
from hushprompt.backbones.prompts import PromptModel
from hushprompt.methods.base import NoState, Untrained
from hushprompt.methods.context import random_context
from hushprompt.registry import METHODS


@dataclass(frozen=True)
class RandomContext:
    """A context that is never trained."""

    context: Float[Tensor, "t e"]


@METHODS.register("random_prompt")
@dataclass(frozen=True, kw_only=True)
class RandomPrompt(Untrained):
    """A random context that is never trained: where every learned prompt starts."""

    num_ctx: int = 16
    """Number of random context tokens t."""
    init_std: float = 0.02
    """Standard deviation of the Gaussian draw, in embedding units."""

    def __post_init__(self) -> None:
        """Check the fields."""
        checks.positive(num_ctx=self.num_ctx, init_std=self.init_std)

    def init(self, model: PromptModel, rng: np.random.Generator) -> tuple[RandomContext, NoState]:
        """Draw the context."""
        return RandomContext(random_context(model, self.num_ctx, self.init_std, rng)), NoState()

    def context(self, shared: RandomContext, personal: NoState) -> Float[Tensor, "t e"]:
        """Give the random context."""
        return shared.context

    def logits(
        self, model: PromptModel, shared: RandomContext, personal: NoState, image_features: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n c"]:
        """Score images with the random context."""
        return model.logits(image_features, model.text_features(shared.context))
