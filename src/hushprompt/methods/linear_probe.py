"""Linear probe: a softmax regression on image features by noisy gradients, from zero or from the zero-shot classifier.

Sources: CLIP (arXiv:2103.00020), section 3, for the probe; Abadi et al. 2016 (arXiv:1607.00133) for its private
gradients; Mehta et al. 2022 (arXiv:2205.02973) for the last layer alone being the strong choice under privacy; Wortsman
et al. 2022 (arXiv:2109.01903) for the start at zero-shot. At epsilon = inf the not private row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hushprompt.methods.base import Batch, NoState, StepInfo, Upload
from hushprompt.methods.context import mean_loss
from hushprompt.methods.linear_head import LinearHead
from hushprompt.models.base import TextKind
from hushprompt.privacy.config import Channel
from hushprompt.privacy.mechanisms.base import Mechanism, clip_outer
from hushprompt.prompts.optimizer import Optimizer, OptimizerState
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.registry import METHODS
from hushprompt.statistics.head import Head

BIAS_INPUT = 0.1
"""What the bias is multiplied with: small beside a unit-norm feature, so that it takes little of the clip norm."""


@dataclass(frozen=True)
class ProbeState:
    """A classifier and the state of the optimizer that moves it."""

    weights: Float[Tensor, "c d1"]
    """Weights of the features, and in the last column the bias over BIAS_INPUT; in logits."""
    optimizer: OptimizerState


@METHODS.register("linear_probe")
@dataclass(frozen=True, kw_only=True)
class LinearProbe(LinearHead):
    """The `method` section of the linear probe."""

    title: ClassVar[str] = "Linear probe"
    payload: ClassVar[tuple[str, ...]] = ("weights",)

    start: Literal["zero", "zero_shot"] = "zero_shot"
    """Weights before the first step: zeros, or the text features of the hand template times the logit scale."""
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=3.0))
    """Optimizer of the weights; its rate is in logits, so far larger than that of a prompt."""

    @property
    def needs_text(self) -> TextKind:
        """Text features where it starts from them."""
        return "features" if self.start == "zero_shot" else "none"

    def init(self, model: PromptModel, rng: np.random.Generator) -> tuple[ProbeState, NoState]:
        """Return the start of the weights."""
        weights = torch.zeros(model.num_classes, model.backbone.feature_dim + 1, device=model.device)
        if self.start == "zero_shot":
            weights[:, :-1] = model.logit_scale * model.template_features
        return ProbeState(weights, self.optimizer.init(weights)), NoState()

    def client_step(
        self,
        model: PromptModel,
        shared: ProbeState,
        personal: NoState,
        batch: Batch,
        mechanism: Mechanism,
        rng: np.random.Generator,
    ) -> tuple[Upload, NoState, StepInfo]:
        """Upload the sum of clipped gradients, each (softmax - onehot) (x, BIAS_INPUT)^T."""
        inputs = F.pad(batch.image_features.float(), (0, 1), value=BIAS_INPUT)  # [b, d + 1]
        logits = inputs @ shared.weights.T
        losses = F.cross_entropy(logits, batch.labels, reduction="none")
        residuals = logits.softmax(dim=1) - F.one_hot(batch.labels, model.num_classes)
        return Upload(clip_outer(mechanism, Channel.GLOBAL, residuals, inputs)), personal, StepInfo(mean_loss(losses))

    def server_step(self, shared: ProbeState, released: Float[Tensor, "c d1"]) -> ProbeState:
        """Step the weights with the released mean gradient."""
        return ProbeState(*self.optimizer.step(shared.weights, released, shared.optimizer))

    def head(self, model: PromptModel, shared: ProbeState) -> Head:
        """Return the weights and the bias."""
        weights = shared.weights.cpu().double()
        return Head(weights[:, :-1] / model.logit_scale, model.logit_scale, BIAS_INPUT * weights[:, -1])
