"""FedOTP: a global and a local prompt, matched to the patches of an image by optimal transport.

Source: Li, Huang, Wang, Shi, "Global and Local Prompts Cooperation via Optimal Transport for Federated Learning", CVPR
2024 (arXiv:2403.00041). Our `shared.context` is their global prompt p_g, `personal.context` their local prompt p_l of a
client, `transport.mass` their gamma. What differs is listed in docs/methods/fedotp.md.

The logit of class y is logit_scale sum_mn T_mn <f_m, t_n>, with f_m the image's patches, t_n the text features of y
under prompt n, and T the transport plan of y's costs 1 - <f_m, t_n>. The plan counts as a constant: no gradient passes
through it.

Privacy: a plan is made from one image's patches and the text features of the prompts, which are the same for all
examples of a batch. Example x's gradients depend on example x alone, so clipping each example bounds its influence, as
in every other method here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from hushprompt.methods.prompt_pair import PromptPairConfig
from hushprompt.models.base import FeatureKind
from hushprompt.prompts.gradients import TextFeatures
from hushprompt.prompts.optimizer import Optimizer
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.prompts.transport import Transport
from hushprompt.registry import METHODS

COSTS_PER_PASS = 2**18
"""Costs of transport that are worked on at a time when images are scored: arrays of 1 MB, which a processor's cache
holds. Measured with the embedded model: a quarter or four times as many take longer."""


@METHODS.register("fedotp")
@dataclass(frozen=True, kw_only=True)
class FedOTP(PromptPairConfig):
    """The `method` section of FedOTP."""

    title: ClassVar[str] = "FedOTP"
    feature_kind: ClassVar[FeatureKind] = "patches"

    transport: Transport = field(default_factory=Transport)
    """How patches and prompts are matched."""
    global_optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=0.4))
    """Optimizer of the global prompt."""

    def scores(
        self, model: PromptModel, text_features: TextFeatures, image_features: Float[Tensor, "n m d"]
    ) -> Float[Tensor, "n c"]:
        """Score images by both prompts and the plans that match them to the patches."""
        features = torch.stack(text_features)
        chunk = max(1, COSTS_PER_PASS // (len(features) * model.num_classes * image_features.shape[1]))
        rows = [aligned_logits(model, features, part, self.transport) for part in image_features.split(chunk)]
        return torch.cat(rows)

    def how_to_score(self) -> str:
        """Say what the plans are."""
        return (
            "logit of a class: logit scale times the sum over patches and contexts of transport plan times cosine; the "
            f"plan is that of cost 1 - cosine, mass {self.transport.mass:g} and entropy weight "
            f"{self.transport.regularization:g}"
        )


def aligned_logits(
    model: PromptModel,
    text_features: Float[Tensor, "p c d"],
    patches: Float[Tensor, "n m d"],
    transport: Transport,
) -> Float[Tensor, "n c"]:
    """Score images by the cosines of their patches with each prompt's text features, weighted by the transport plans.

    Args:
        model: frozen backbone and class names.
        text_features: [p, c, d] one set for each prompt.
        patches: [n, m, d] unit-norm features of each image's patches.
        transport: how patches and prompts are matched.
    """
    cosines = torch.einsum("nmd,pcd->ncmp", patches, text_features)
    plans = transport.plan(1 - cosines.detach())
    return model.logit_scale * (plans * cosines).sum(dim=(-2, -1))
