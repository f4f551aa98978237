"""FedOTP: a global and a local prompt, matched to the patches of an image by optimal transport.

Source: Li, Huang, Wang, Shi, "Global and Local Prompts Cooperation via Optimal Transport for Federated Learning", CVPR
2024 (arXiv:2403.00041). Our `shared.context` is their global prompt p_g, `personal.context` their local prompt p_l of a
client, `transport.mass` their gamma. What differs is listed in docs/methods/fedotp.md.

Privacy: a plan is made from one image's patches and the text features of the prompts, which are the same for all
examples of a batch. Example x's gradients depend on example x alone, so clipping each example bounds its influence, as
in every other method here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hushprompt.backbones.base import FeatureKind
from hushprompt.backbones.prompts import PromptModel
from hushprompt.methods.alignment import aligned_gradients, aligned_logits
from hushprompt.methods.base import Batch, Published, StepInfo, Upload
from hushprompt.methods.context import ContextConfig, ContextState, fresh, mean_loss
from hushprompt.methods.optimizer import Optimizer
from hushprompt.methods.transport import Transport
from hushprompt.privacy.plan import Channel, Mechanism
from hushprompt.registry import METHODS


@METHODS.register("fedotp")
@dataclass(frozen=True, kw_only=True)
class FedOTP(ContextConfig):
    """The `method` section of FedOTP."""

    title: ClassVar[str] = "FedOTP"
    channels: ClassVar[frozenset[Channel]] = frozenset({Channel.LOCAL, Channel.GLOBAL})
    feature_kind: ClassVar[FeatureKind] = "patches"

    transport: Transport = field(default_factory=Transport)
    """How patches and prompts are matched."""
    global_optimizer: Optimizer = field(default_factory=Optimizer)
    """Optimizer of the global prompt."""
    local_optimizer: Optimizer = field(default_factory=Optimizer)
    """Optimizer of the local prompt; every client has its own state."""

    def init(self, model: PromptModel, rng: np.random.Generator) -> tuple[ContextState, ContextState]:
        """Give the start of the global prompt, and the one start of all local prompts: words, or two draws."""
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
        """Step the local prompt with its released mean gradient; upload the clipped sum for the global one."""
        contexts = (shared.context, personal.context)
        (of_global, of_local), losses = aligned_gradients(model, contexts, batch, self.transport, self.name_position)
        released = mechanism.release(Channel.LOCAL, mechanism.clip(Channel.LOCAL, of_local))
        stepped = ContextState(*self.local_optimizer.step(personal.context, released, personal.optimizer))
        return Upload(mechanism.clip(Channel.GLOBAL, of_global)), stepped, StepInfo(mean_loss(losses))

    def server_step(self, shared: ContextState, released: Float[Tensor, "*c t e"]) -> ContextState:
        """Step the global prompt with the released mean gradient."""
        return ContextState(*self.global_optimizer.step(shared.context, released, shared.optimizer))

    def public_file(self, model: PromptModel, shared: ContextState) -> Published:
        """Give the global prompt."""
        return Published({"context": shared.context}, model.layout(shared.context, self.name_position))

    def personal_file(self, model: PromptModel, shared: ContextState, personal: ContextState) -> Published:
        """Give both prompts of a client."""
        layout = model.layout(shared.context, self.name_position)
        how = (
            f"{layout}, once with each context; logit of a class: logit scale times the sum over patches and contexts "
            f"of transport plan times cosine; the plan is that of cost 1 - cosine, mass {self.transport.mass:g} and "
            f"entropy weight {self.transport.regularization:g}"
        )
        return Published({"global_context": shared.context, "local_context": personal.context}, how)

    def logits(
        self,
        model: PromptModel,
        shared: ContextState,
        personal: ContextState,
        image_features: Float[Tensor, "n m d"],
    ) -> Float[Tensor, "n c"]:
        """Score images by both prompts and the plan that matches them to the patches."""
        features = torch.stack([self.text_features(model, state.context) for state in (shared, personal)])
        return aligned_logits(model, features, image_features, self.transport)
