"""Local-only CoOp: every client trains a context of its own and shares nothing.

Source: Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022 (arXiv:2109.01134); by default a unified
context with the class name at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from hushprompt.methods.base import Batch, NoState, StepInfo, Upload
from hushprompt.methods.context import ContextConfig, ContextState, fresh, mean_loss
from hushprompt.privacy.config import Channel
from hushprompt.privacy.mechanisms.base import Mechanism
from hushprompt.prompts.optimizer import Optimizer
from hushprompt.prompts.prompted_model import PromptedModel
from hushprompt.registry import METHODS


@METHODS.register("local_only")
@dataclass(frozen=True, kw_only=True)
class LocalOnly(ContextConfig):
    """The `method` section of local-only CoOp."""

    title: ClassVar[str] = "local-only"
    needs_two_towers: ClassVar[bool] = False
    channels: ClassVar[frozenset[Channel]] = frozenset({Channel.LOCAL})
    payload: ClassVar[tuple[str, ...]] = ()

    optimizer: Optimizer = field(default_factory=Optimizer)
    """Optimizer of each client's prompt."""

    def init(self, model: PromptedModel, rng: np.random.Generator) -> tuple[NoState, ContextState]:
        """Return the one start of all clients' prompts."""
        return NoState(), fresh(self.first_context(model, rng), self.optimizer)

    def client_step(
        self,
        model: PromptedModel,
        shared: NoState,
        personal: ContextState,
        batch: Batch,
        mechanism: Mechanism,
        rng: np.random.Generator,
    ) -> tuple[Upload, ContextState, StepInfo]:
        """Step the client's prompt with the released mean gradient."""
        grads, losses = self.gradients(model, personal.context, batch)
        released = mechanism.release(Channel.LOCAL, mechanism.clip(Channel.LOCAL, grads))
        stepped = ContextState(*self.optimizer.step(personal.context, released.value, personal.optimizer))
        return Upload(None), stepped, StepInfo(mean_loss(losses), released.next_norms)

    def server_step(self, shared: NoState, released: Tensor) -> NoState:
        """Nothing is shared."""
        return shared

    def shared_context(self, shared: NoState) -> None:
        """Nothing is shared."""

    def context(self, shared: NoState, personal: ContextState) -> Float[Tensor, "*c t e"]:
        """Return the client's prompt."""
        return personal.context
