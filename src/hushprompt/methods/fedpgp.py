"""FedPGP: a global prompt plus a trainable low-rank term, with a contrastive loss between prompts.

Source: Cui, Li, Wang, Shi, "Harmonizing Generalization and Personalization in Federated Prompt Learning", ICML 2024
(arXiv:2405.09771). Our `shared.context` is their global prompt p_G, `u` and `v` their U_i and V_i, so a client's prompt
is p_i = p_G + U_i V_i; `template_features` are those of their hand-crafted prompt. What differs is listed in
docs/methods/fedpgp.md.

The contrastive loss depends on the prompts alone, and the prompts on data only through earlier releases, so its
gradient is post-processing. It is added behind clipping and noise, and costs no privacy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hushprompt import checks
from hushprompt.methods.base import Batch, StepInfo, Upload
from hushprompt.methods.context import ContextState, PromptSumConfig, fresh, gaussian, mean_loss
from hushprompt.privacy.config import Channel
from hushprompt.privacy.mechanisms.base import Mechanism
from hushprompt.prompts.factorization import factor_gradients, unstack
from hushprompt.prompts.optimizer import OptimizerState
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.registry import METHODS


@dataclass(frozen=True)
class LowRankState:
    """A client's factors, and the states of the optimizers that move them."""

    u: Float[Tensor, "t r"]
    v: Float[Tensor, "r e"]
    optimizer_u: OptimizerState
    optimizer_v: OptimizerState


class Pull(NamedTuple):
    """Gradient of the weighted contrastive loss in the three things that are trained."""

    context: Float[Tensor, "*c t e"]
    u: Float[Tensor, "t r"]
    v: Float[Tensor, "r e"]


@METHODS.register("fedpgp")
@dataclass(frozen=True, kw_only=True)
class FedPGP(PromptSumConfig):
    """The `method` section of FedPGP."""

    title: ClassVar[str] = "FedPGP"
    channels: ClassVar[frozenset[Channel]] = frozenset({Channel.LOCAL, Channel.GLOBAL})

    rank: int = 4
    """Rank r of the personal term, the authors' bottleneck; at most min(t, e), or min(c t, e) where each class has a
    context of its own."""
    contrast_weight: float = 1.0
    """Weight mu of the contrastive loss beside the cross-entropy; 0 leaves the sum of prompts alone (ablation)."""
    temperature: float = 0.5
    """Temperature tau of the contrastive loss, in cosine units."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(rank=self.rank, temperature=self.temperature)
        checks.non_negative(contrast_weight=self.contrast_weight)

    def init(self, model: PromptModel, rng: np.random.Generator) -> tuple[ContextState, LowRankState]:
        """Return the start of the global prompt, and draw the one start of all clients' factors."""
        self.check_rank(model, self.rank)
        shared = fresh(self.first_context(model, rng), self.global_optimizer)
        num_rows = shared.context.shape[:-1].numel()
        u = gaussian((num_rows, self.rank), self.init_std, rng).to(model.device)
        v = gaussian((self.rank, model.token_width), self.init_std, rng).to(model.device)
        return shared, LowRankState(u, v, self.local_optimizer.init(u), self.local_optimizer.init(v))

    def client_step(
        self,
        model: PromptModel,
        shared: ContextState,
        personal: LowRankState,
        batch: Batch,
        mechanism: Mechanism,
        rng: np.random.Generator,
    ) -> tuple[Upload, LowRankState, StepInfo]:
        """Release noisy factor gradients and step the factors; upload the clipped global sum.

        The contrastive pull on the global prompt travels in the upload, and the server's division makes it the mean
        over clients, weighted by their sizes as in federated averaging.
        """
        u, v = personal.u, personal.v
        grads, losses = self.gradients(model, self.context(shared, personal), batch)
        stacked = factor_gradients(u, v, grads.flatten(1, -2))  # clipped together
        released = mechanism.release(Channel.LOCAL, mechanism.clip(Channel.LOCAL, stacked))
        grad_u, grad_v = unstack(u, v, released.value)
        upload = mechanism.clip(Channel.GLOBAL, grads)
        if self.contrast_weight > 0:
            pull = self._pull(model, shared, personal)
            grad_u, grad_v = grad_u + pull.u, grad_v + pull.v
            upload = mechanism.add_penalty(upload, pull.context)
        u, optimizer_u = self.local_optimizer.step(u, grad_u, personal.optimizer_u)
        v, optimizer_v = self.local_optimizer.step(v, grad_v, personal.optimizer_v)
        return (
            Upload(upload),
            LowRankState(u, v, optimizer_u, optimizer_v),
            StepInfo(mean_loss(losses), released.next_norms),
        )

    def context(self, shared: ContextState, personal: LowRankState) -> Float[Tensor, "*c t e"]:
        """Return the global prompt plus the low-rank term."""
        return shared.context + (personal.u @ personal.v).view_as(shared.context)

    def _pull(self, model: PromptModel, shared: ContextState, personal: LowRankState) -> Pull:
        """Differentiate the weighted contrastive loss; no data enters."""
        contexts = shared.context, self.context(shared, personal)
        passes = [model.text_pass(context, self.name_position) for context in contexts]
        features = [each.features.clone().requires_grad_() for each in passes]
        with torch.enable_grad():
            loss = contrastive_loss(features[0], features[1], model.template_features, self.temperature)
            cotangents = torch.autograd.grad(self.contrast_weight * loss, features)
        of_global, of_personal = (
            each.pull_back(cotangent[None])[0] for each, cotangent in zip(passes, cotangents, strict=True)
        )
        row = factor_gradients(personal.u, personal.v, of_personal.flatten(0, -2)[None])[0]
        return Pull(of_global + of_personal, *unstack(personal.u, personal.v, row))


def contrastive_loss(
    of_global: Float[Tensor, "c d"],
    of_personal: Float[Tensor, "c d"],
    of_template: Float[Tensor, "c d"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Return the prompt-wise contrastive loss, a mean over classes.

    The anchor is the global prompt, the hand template its positive, the personal prompt its one negative:
    -log(exp(cos(g, h) / tau) / (exp(cos(g, h) / tau) + exp(cos(g, p) / tau))). All features have unit norm.
    """
    positive, negative = (of_global * of_template).sum(dim=1), (of_global * of_personal).sum(dim=1)
    return F.softplus((negative - positive) / temperature).mean()
