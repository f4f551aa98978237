"""PromptFolio: the text features of a global and a personal prompt, mixed.

Source: Pan, Huang, Shi, "Federated Learning from Vision-Language Foundation Models: Theoretical Analysis and Method",
NeurIPS 2024 (arXiv:2409.19610). Our `shared.context` is their global prompt p_G, `personal.context` their local prompt
p_i, `theta` their mixing coefficient. What differs is listed in docs/methods/promptfolio.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from hushprompt import checks
from hushprompt.backbones.prompts import PromptModel
from hushprompt.methods.base import Batch, Published, StepInfo, Upload
from hushprompt.methods.context import ContextState, GlobalAndPersonalConfig, fresh, mean_loss
from hushprompt.methods.multi_gradients import TextFeatures, gradients_in_contexts
from hushprompt.privacy.plan import Channel, Mechanism
from hushprompt.registry import METHODS


@METHODS.register("promptfolio")
@dataclass(frozen=True, kw_only=True)
class PromptFolio(GlobalAndPersonalConfig):
    """The `method` section of PromptFolio."""

    title: ClassVar[str] = "PromptFolio"
    channels: ClassVar[frozenset[Channel]] = frozenset({Channel.LOCAL, Channel.GLOBAL})

    theta: float = 0.4
    """Share of the personal prompt's text features, in [0, 1]: 0 is PromptFL, 1 local-only. The authors' default."""

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        checks.in_range(0, 1, theta=self.theta)

    def init(self, model: PromptModel, rng: np.random.Generator) -> tuple[ContextState, ContextState]:
        """Give the start of the global prompt and the one start of all personal prompts; words, if any, to both."""
        shared = fresh(self.start(model, rng), self.global_optimizer)
        return shared, fresh(self.start(model, rng), self.local_optimizer)

    def client_step(
        self,
        model: PromptModel,
        shared: ContextState,
        personal: ContextState,
        batch: Batch,
        mechanism: Mechanism,
        rng: np.random.Generator,
    ) -> tuple[Upload, ContextState, StepInfo]:
        """Release the noisy gradient in the personal prompt and step it; upload the clipped sum for the global one."""

        def logits(text_features: TextFeatures, image: Float[Tensor, " d"]) -> Float[Tensor, " c"]:
            return model.logits(image[None], self._mixed(*text_features))[0]

        contexts = (shared.context, personal.context)
        (of_shared, of_personal), losses = gradients_in_contexts(
            model, contexts, logits, batch.image_features, batch.labels, self.name_position
        )
        released = mechanism.release(Channel.LOCAL, mechanism.clip(Channel.LOCAL, of_personal))
        stepped = ContextState(*self.local_optimizer.step(personal.context, released, personal.optimizer))
        return Upload(mechanism.clip(Channel.GLOBAL, of_shared)), stepped, StepInfo(mean_loss(losses))

    def personal_file(self, model: PromptModel, shared: ContextState, personal: ContextState) -> Published:
        """Give both prompts of a client, and how they are mixed."""
        layout = model.layout(shared.context, self.name_position)
        how = (
            f"{layout}, once with each context; text features of unit norm, mixed as {1 - self.theta:g} x global + "
            f"{self.theta:g} x local, and not normalized again"
        )
        return Published({"global_context": shared.context, "local_context": personal.context}, how)

    def logits(
        self, model: PromptModel, shared: ContextState, personal: ContextState, image_features: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n c"]:
        """Score images with the mixture."""
        both = (self.text_features(model, state.context) for state in (shared, personal))
        return model.logits(image_features, self._mixed(*both))

    def _mixed(self, of_shared: Float[Tensor, "c d"], of_personal: Float[Tensor, "c d"]) -> Float[Tensor, "c d"]:
        """Mix features of unit norm; the mixture is not normalized again."""
        return (1 - self.theta) * of_shared + self.theta * of_personal
