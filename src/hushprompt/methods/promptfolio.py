"""PromptFolio: the text features of a global and a personal prompt, mixed.

Source: Pan, Huang, Shi, "Federated Learning from Vision-Language Foundation Models: Theoretical Analysis and Method",
NeurIPS 2024 (arXiv:2409.19610). Our `shared.context` is their global prompt p_G, `personal.context` their local prompt
p_i, `theta` their mixing coefficient. What differs is listed in docs/methods/promptfolio.md.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from hushprompt import checks
from hushprompt.methods.base import Published
from hushprompt.methods.context import ContextState
from hushprompt.methods.prompt_pair import PromptPairConfig
from hushprompt.prompts.gradients import TextFeatures
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.registry import METHODS


@METHODS.register("promptfolio")
@dataclass(frozen=True, kw_only=True)
class PromptFolio(PromptPairConfig):
    """The `method` section of PromptFolio."""

    title: ClassVar[str] = "PromptFolio"

    theta: float = 0.4
    """Share of the personal prompt's text features, in [0, 1]: 0 is PromptFL, 1 local-only. The authors' default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.in_range(0, 1, theta=self.theta)

    def scores(
        self, model: PromptModel, text_features: TextFeatures, image_features: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n c"]:
        """Score images with the mixture of features of unit norm, which is not normalized again."""
        return model.logits(image_features, self._mixed(*text_features))

    def personal_file(self, model: PromptModel, shared: ContextState, personal: ContextState) -> Published:
        """Return both prompts of a client, how they score together, and the mixed text features."""
        contexts = (shared.context, personal.context)
        mixed = lambda: self._mixed(*(self.text_features(model, context) for context in contexts))  # noqa: E731
        return dataclasses.replace(super().personal_file(model, shared, personal), text_features_fn=mixed)

    def _mixed(self, of_shared: Float[Tensor, "c d"], of_personal: Float[Tensor, "c d"]) -> Float[Tensor, "c d"]:
        """Mix text features of unit norm."""
        return (1 - self.theta) * of_shared + self.theta * of_personal

    def how_to_score(self) -> str:
        """Say how the features are mixed."""
        return (
            f"text features of unit norm, mixed as {1 - self.theta:g} x global + {self.theta:g} x local, and not "
            "normalized again"
        )
