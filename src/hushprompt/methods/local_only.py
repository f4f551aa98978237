"""Local-only CoOp: every client trains a context of its own and shares nothing.

Source: Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022 (arXiv:2109.01134), unified context,
class name at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from hushprompt import checks
from hushprompt.backbones.prompts import PromptModel
from hushprompt.methods.base import Batch, NoState, StepInfo, Upload
from hushprompt.methods.context import ContextState, init_context, mean_loss
from hushprompt.methods.gradients import per_example_gradients
from hushprompt.methods.optimizer import Optimizer
from hushprompt.privacy.plan import Channel, Mechanism
from hushprompt.registry import METHODS


@METHODS.register("local_only")
@dataclass(frozen=True, kw_only=True)
class LocalOnly:
    """The `method` section of local-only CoOp."""

    channels: ClassVar[frozenset[Channel]] = frozenset({Channel.LOCAL})

    num_ctx: int = 16
    """Number of learnable context tokens t."""
    init_std: float = 0.02
    """Standard deviation of the Gaussian start, in embedding units."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """Optimizer of each client's prompt."""

    def __post_init__(self) -> None:
        """Check the fields."""
        checks.positive(num_ctx=self.num_ctx, init_std=self.init_std)

    def init(self, model: PromptModel, rng: np.random.Generator) -> tuple[NoState, ContextState]:
        """Draw the one start of all clients' prompts."""
        return NoState(), init_context(model, self.num_ctx, self.init_std, self.optimizer, rng)

    def client_step(
        self,
        model: PromptModel,
        shared: NoState,
        personal: ContextState,
        batch: Batch,
        mechanism: Mechanism,
        rng: np.random.Generator,
    ) -> tuple[Upload, ContextState, StepInfo]:
        """Step the client's prompt with the released mean gradient."""
        grads, losses = per_example_gradients(model, personal.context, batch)
        released = mechanism.release(Channel.LOCAL, mechanism.clip(Channel.LOCAL, grads))
        stepped = ContextState(*self.optimizer.step(personal.context, released, personal.optimizer))
        return Upload(None), stepped, StepInfo(mean_loss(losses))

    def server_step(self, shared: NoState, released: Tensor) -> NoState:
        """Nothing is shared."""
        return shared

    def shared_context(self, shared: NoState) -> None:
        """Nothing is shared."""

    def context(self, shared: NoState, personal: ContextState) -> Float[Tensor, "t e"]:
        """Give the client's prompt."""
        return personal.context

    def logits(
        self, model: PromptModel, shared: NoState, personal: ContextState, image_features: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n c"]:
        """Score images with the client's prompt."""
        return model.logits(image_features, model.text_features(personal.context))
