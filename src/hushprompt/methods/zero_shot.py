"""Zero-shot: what the frozen model does with a hand template, untouched by any data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from hushprompt.methods.base import NoState, Untrained
from hushprompt.models.base import TextKind
from hushprompt.prompts.prompted_model import PromptedModel
from hushprompt.registry import METHODS


@METHODS.register("zero_shot")
@dataclass(frozen=True, kw_only=True)
class ZeroShot(Untrained):
    """The backbone's hand template, untouched by any client's data. Source: CLIP (arXiv:2103.00020), section 3.1."""

    title: ClassVar[str] = "zero-shot template"
    needs_two_towers: ClassVar[bool] = False
    needs_text: ClassVar[TextKind] = "features"

    def init(self, model: PromptedModel, rng: np.random.Generator) -> tuple[NoState, NoState]:
        """Nothing to learn."""
        return NoState(), NoState()

    def logits(
        self, model: PromptedModel, shared: NoState, personal: NoState, image_features: Float[Tensor, "n *m d"]
    ) -> Float[Tensor, "n c"]:
        """Score images against the hand template."""
        return model.template_scores(image_features)
