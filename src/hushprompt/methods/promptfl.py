"""PromptFL: federated averaging of one shared context, with FedProx's proximal term as an option.

Sources: Guo et al., "PromptFL: Let Federated Participants Cooperatively Learn Prompts Instead of Models", 2022
(arXiv:2208.11625); our `shared.context` is their prompt P. Li et al., "Federated Optimization in Heterogeneous
Networks", MLSys 2020 (arXiv:1812.06127), Algorithm 2; our `proximal_weight` is their mu, `shared.anchor` their w^t.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from hushprompt import checks
from hushprompt.methods.base import Batch, NoState, StepInfo, Upload
from hushprompt.methods.context import ContextState, SharedContextConfig, fresh, mean_loss
from hushprompt.privacy.config import Channel
from hushprompt.privacy.mechanisms.base import Mechanism
from hushprompt.prompts.optimizer import Optimizer
from hushprompt.prompts.prompted_model import PromptedModel
from hushprompt.registry import METHODS


@dataclass(frozen=True)
class AnchoredState(ContextState):
    """A context that knows where its round began."""

    anchor: Float[Tensor, "*c t e"]


@METHODS.register("promptfl")
@dataclass(frozen=True, kw_only=True)
class PromptFL(SharedContextConfig):
    """The `method` section of PromptFL."""

    title: ClassVar[str] = "PromptFL"
    needs_two_towers: ClassVar[bool] = False
    channels: ClassVar[frozenset[Channel]] = frozenset({Channel.GLOBAL})

    optimizer: Optimizer = field(default_factory=Optimizer)
    """Optimizer of the shared prompt."""
    proximal_weight: float = 0.0
    """FedProx's mu: pull of a client's copy toward the start of the round, per unit of distance. It acts where clients
    take several steps between averages; 0 is PromptFL."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.non_negative(proximal_weight=self.proximal_weight)

    def init(self, model: PromptedModel, rng: np.random.Generator) -> tuple[AnchoredState, NoState]:
        """Return the start of the shared prompt."""
        start = fresh(self.first_context(model, rng), self.optimizer)
        return AnchoredState(start.context, start.optimizer, anchor=start.context), NoState()

    def begin_round(self, shared: AnchoredState) -> AnchoredState:
        """Keep the context at the start of the round."""
        return dataclasses.replace(shared, anchor=shared.context)

    def client_step(
        self,
        model: PromptedModel,
        shared: AnchoredState,
        personal: NoState,
        batch: Batch,
        mechanism: Mechanism,
        rng: np.random.Generator,
    ) -> tuple[Upload, NoState, StepInfo]:
        """Upload the sum of clipped gradients."""
        grads, losses = self.gradients(model, shared.context, batch)
        return Upload(mechanism.clip(Channel.GLOBAL, grads)), personal, StepInfo(mean_loss(losses))

    def server_step(self, shared: AnchoredState, released: Float[Tensor, "*c t e"]) -> AnchoredState:
        """Step the shared prompt, or a client's copy of it, with the released mean gradient and the proximal pull.

        The pull is a function of released contexts, so it costs no privacy and is neither clipped nor noised.
        """
        pull = self.proximal_weight * (shared.context - shared.anchor)
        context, optimizer = self.optimizer.step(shared.context, released + pull, shared.optimizer)
        return AnchoredState(context, optimizer, shared.anchor)

    def shared_context(self, shared: AnchoredState) -> Float[Tensor, "*c t e"]:
        """Return the shared prompt."""
        return shared.context

    def context(self, shared: AnchoredState, personal: NoState) -> Float[Tensor, "*c t e"]:
        """Return the shared prompt."""
        return shared.context
