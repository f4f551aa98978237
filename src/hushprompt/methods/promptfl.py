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

from hushprompt.backbones.prompts import PromptModel
from hushprompt.methods.base import Batch, NoState, StepInfo, Upload
from hushprompt.methods.context import ContextConfig, ContextState, fresh, mean_loss
from hushprompt.methods.gradients import per_example_gradients
from hushprompt.methods.optimizer import Optimizer
from hushprompt.privacy.plan import Channel, Mechanism
from hushprompt.registry import METHODS


@METHODS.register("promptfl")
@dataclass(frozen=True, kw_only=True)
class PromptFL(ContextConfig):
    """The `method` section of PromptFL."""

    title: ClassVar[str] = "PromptFL"
    channels: ClassVar[frozenset[Channel]] = frozenset({Channel.GLOBAL})

    optimizer: Optimizer = field(default_factory=Optimizer)
    """Optimizer of the shared prompt."""

    def init(self, model: PromptModel, rng: np.random.Generator) -> tuple[ContextState, NoState]:
        """Give the start of the shared prompt."""
        return fresh(self.start(model, rng), self.optimizer), NoState()

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
        grads, losses = per_example_gradients(model, shared.context, batch, self.name_position)
        return Upload(mechanism.clip(Channel.GLOBAL, grads)), personal, StepInfo(mean_loss(losses))

    def server_step(self, shared: ContextState, released: Float[Tensor, "*c t e"]) -> ContextState:
        """Step the shared prompt with the released mean gradient."""
        return ContextState(*self.optimizer.step(shared.context, released, shared.optimizer))

    def shared_context(self, shared: ContextState) -> Float[Tensor, "*c t e"]:
        """Give the shared prompt."""
        return shared.context

    def context(self, shared: ContextState, personal: NoState) -> Float[Tensor, "*c t e"]:
        """Give the shared prompt."""
        return shared.context

    def logits(
        self, model: PromptModel, shared: ContextState, personal: NoState, image_features: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n c"]:
        """Score images with the shared prompt."""
        return model.logits(image_features, self.text_features(model, shared.context))
