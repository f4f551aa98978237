"""PromptFL: federated averaging of one shared context.

Source: Guo et al., "PromptFL: Let Federated Participants Cooperatively Learn Prompts Instead of Models", 2022
(arXiv:2208.11625). Our `shared.context` is their prompt P; one step a round, averaged over examples.
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


@METHODS.register("promptfl")
@dataclass(frozen=True, kw_only=True)
class PromptFL:
    """The `method` section of PromptFL."""

    channels: ClassVar[frozenset[Channel]] = frozenset({Channel.GLOBAL})

    num_ctx: int = 16
    """Number of learnable context tokens t; CoOp's default."""
    init_std: float = 0.02
    """Standard deviation of the Gaussian start, in embedding units."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """Optimizer of the shared prompt."""

    def __post_init__(self) -> None:
        """Check the fields."""
        checks.positive(num_ctx=self.num_ctx, init_std=self.init_std)

    def init(self, model: PromptModel, rng: np.random.Generator) -> tuple[ContextState, NoState]:
        """Draw the shared prompt."""
        return init_context(model, self.num_ctx, self.init_std, self.optimizer, rng), NoState()

    def client_step(
        self,
        model: PromptModel,
        shared: ContextState,
        personal: NoState,
        batch: Batch,
        mechanism: Mechanism,
        rng: np.random.Generator,
    ) -> tuple[Upload, NoState, StepInfo]:
        """Upload the sum of clipped gradients."""
        grads, losses = per_example_gradients(model, shared.context, batch)
        return Upload(mechanism.clip(Channel.GLOBAL, grads)), personal, StepInfo(mean_loss(losses))

    def server_step(self, shared: ContextState, released: Float[Tensor, "t e"]) -> ContextState:
        """Step the shared prompt with the released mean gradient."""
        return ContextState(*self.optimizer.step(shared.context, released, shared.optimizer))

    def shared_context(self, shared: ContextState) -> Float[Tensor, "t e"]:
        """Give the shared prompt."""
        return shared.context

    def context(self, shared: ContextState, personal: NoState) -> Float[Tensor, "t e"]:
        """Give the shared prompt."""
        return shared.context

    def logits(
        self, model: PromptModel, shared: ContextState, personal: NoState, image_features: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n c"]:
        """Score images with the shared prompt."""
        return model.logits(image_features, model.text_features(shared.context))
