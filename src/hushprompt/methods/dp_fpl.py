"""DP-FPL: a global prompt plus a personal prompt that is trained through low-rank factors.

Source: Tran, Sun, Patterson, Milanova, "Privacy-Preserving Personalized Federated Prompt Learning for Multimodal Large
Language Models", ICLR 2025 (arXiv:2501.13904). Our `shared.context` is their p_G, `personal.context` their p_i
(local prompt), `u`, `v`, `residual` their u_i, v_i, r_i. What differs is listed in docs/methods/dp-fpl.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hushprompt import checks
from hushprompt.backbones.prompts import PromptModel
from hushprompt.errors import ConfigError
from hushprompt.methods.base import Batch, StepInfo, Upload
from hushprompt.methods.context import ContextConfig, ContextState, fresh, mean_loss
from hushprompt.methods.factorization import Factors, Form, factorize
from hushprompt.methods.gradients import per_example_gradients
from hushprompt.methods.optimizer import Optimizer
from hushprompt.privacy.plan import Channel, Mechanism
from hushprompt.registry import METHODS


@METHODS.register("dp_fpl")
@dataclass(frozen=True, kw_only=True)
class DPFPL(ContextConfig):
    """The `method` section of DP-FPL."""

    title: ClassVar[str] = "DP-FPL"
    channels: ClassVar[frozenset[Channel]] = frozenset({Channel.LOCAL, Channel.GLOBAL})

    rank: int = 8
    """Rank r of the factors, at most min(t, e); min(c t, e) where each class has a context of its own."""
    factorization: Form = "orthonormal"
    """How l = u v + r is made: "projection", "orthonormal" or "svd"."""
    power_iterations: int = 1
    """Power iterations per factorization."""
    update: Literal["factors", "tangent"] = "tangent"
    """Step the factors, or step l along the tangent-space gradient (needs factorization = "orthonormal")."""
    keep_residual: bool = True
    """False drops r at every step: the personal prompt stays low rank (ablation)."""
    global_optimizer: Optimizer = field(default_factory=Optimizer)
    """Optimizer of the global prompt."""
    local_optimizer: Optimizer = field(default_factory=Optimizer)
    """Optimizer of the personal prompt; every client has its own state."""

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        checks.positive(rank=self.rank, power_iterations=self.power_iterations)
        if self.update == "tangent" and self.factorization != "orthonormal":
            raise ConfigError(
                'method.update = "tangent" needs both factors orthonormal, got method.factorization = '
                f'"{self.factorization}". Use factorization = "orthonormal", or update = "factors".'
            )

    def init(self, model: PromptModel, rng: np.random.Generator) -> tuple[ContextState, ContextState]:
        """Give the start of the global prompt, and draw the one start of all personal prompts.

        Initial words are the global prompt's alone: the two are added up, and factors of zero would not move.
        """
        num_rows = self.num_ctx * (model.num_classes if self.is_class_specific else 1)
        widest = min(num_rows, model.token_width)
        if self.rank > widest:
            rows = "num_classes * num_ctx" if self.is_class_specific else "num_ctx"
            raise ConfigError(
                f"method.rank must be at most min({rows}, token width) = min({num_rows}, {model.token_width}) = "
                f"{widest}, got {self.rank}. Use a smaller rank."
            )
        shared = fresh(self.start(model, rng), self.global_optimizer)
        return shared, fresh(self.draw(model, rng), self.local_optimizer)

    def client_step(
        self,
        model: PromptModel,
        shared: ContextState,
        personal: ContextState,
        batch: Batch,
        mechanism: Mechanism,
        rng: np.random.Generator,
    ) -> tuple[Upload, ContextState, StepInfo]:
        """Factorize, release noisy factor gradients, step the personal prompt; upload the clipped global sum.

        Where each class has a context of its own, they are stacked to one matrix: t stands for c t in the factors.
        """
        stacked_context = personal.context.flatten(0, -2)  # [t, e]
        factors = factorize(
            stacked_context, self.rank, form=self.factorization, power_iterations=self.power_iterations, rng=rng
        )
        local = personal.context  # = u v + r
        if not self.keep_residual:
            local = (factors.u @ factors.v).view_as(personal.context)
        grads, losses = per_example_gradients(model, shared.context + local, batch, self.name_position)
        grad_matrices = grads.flatten(1, -2)  # [b, t, e]
        grads_u = grad_matrices @ factors.v.T  # [b, t, r]
        grads_v = factors.u.T @ grad_matrices  # [b, r, e]
        stacked = torch.cat([grads_u.flatten(1), grads_v.flatten(1)], dim=1)  # clipped together
        released = mechanism.release(Channel.LOCAL, mechanism.clip(Channel.LOCAL, stacked))
        grad_u, grad_v = released.split([factors.u.numel(), factors.v.numel()])
        direction = self._direction(factors, grad_u.view_as(factors.u), grad_v.view_as(factors.v))
        context, optimizer = self.local_optimizer.step(local, direction.view_as(local), personal.optimizer)
        upload = Upload(mechanism.clip(Channel.GLOBAL, grads))
        return upload, ContextState(context, optimizer), StepInfo(mean_loss(losses))

    def server_step(self, shared: ContextState, released: Float[Tensor, "*c t e"]) -> ContextState:
        """Step the global prompt with the released mean gradient."""
        return ContextState(*self.global_optimizer.step(shared.context, released, shared.optimizer))

    def shared_context(self, shared: ContextState) -> Float[Tensor, "*c t e"]:
        """Give the global prompt."""
        return shared.context

    def context(self, shared: ContextState, personal: ContextState) -> Float[Tensor, "*c t e"]:
        """Give the sum of global and personal prompt."""
        return shared.context + personal.context

    def logits(
        self, model: PromptModel, shared: ContextState, personal: ContextState, image_features: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n c"]:
        """Score images with the client's context."""
        return model.logits(image_features, self.text_features(model, self.context(shared, personal)))

    def _direction(
        self, factors: Factors, grad_u: Float[Tensor, "t r"], grad_v: Float[Tensor, "r e"]
    ) -> Float[Tensor, "t e"]:
        """Give the gradient for l that the released factor gradients stand for.

        "tangent": the projection of dL/dl on the tangent space of u v, g_u v + u g_v - u u^T g_u v. "factors": what
        (l - l') / learning_rate is after u' = u - learning_rate g_u, v' = v - learning_rate g_v, l' = u' v' + r.
        """
        u, v = factors.u, factors.v
        first_order = grad_u @ v + u @ grad_v
        if self.update == "tangent":
            return first_order - u @ (u.T @ grad_u) @ v
        return first_order - self.local_optimizer.learning_rate * grad_u @ grad_v
