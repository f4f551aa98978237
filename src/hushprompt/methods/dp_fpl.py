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
from hushprompt.methods.context import ContextState, init_context, mean_loss
from hushprompt.methods.factorization import Factors, Form, factorize
from hushprompt.methods.gradients import per_example_gradients
from hushprompt.methods.optimizer import Optimizer
from hushprompt.privacy.plan import Channel, Mechanism
from hushprompt.registry import METHODS


@METHODS.register("dp_fpl")
@dataclass(frozen=True, kw_only=True)
class DPFPL:
    """The `method` section of DP-FPL."""

    channels: ClassVar[frozenset[Channel]] = frozenset({Channel.LOCAL, Channel.GLOBAL})

    num_ctx: int = 16
    """Number of learnable context tokens t, of the global and of the personal prompt."""
    init_std: float = 0.02
    """Standard deviation of the Gaussian start of both prompts, in embedding units."""
    rank: int = 8
    """Rank r of the factors, at most min(t, e)."""
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
        checks.positive(num_ctx=self.num_ctx, init_std=self.init_std, rank=self.rank)
        checks.positive(power_iterations=self.power_iterations)
        if self.update == "tangent" and self.factorization != "orthonormal":
            raise ConfigError(
                'method.update = "tangent" needs both factors orthonormal, got method.factorization = '
                f'"{self.factorization}". Use factorization = "orthonormal", or update = "factors".'
            )

    def init(self, model: PromptModel, rng: np.random.Generator) -> tuple[ContextState, ContextState]:
        """Draw the global prompt and the one start of all personal prompts."""
        widest = min(self.num_ctx, model.token_width)
        if self.rank > widest:
            raise ConfigError(
                f"method.rank must be at most min(num_ctx, token width) = min({self.num_ctx}, {model.token_width}) = "
                f"{widest}, got {self.rank}. Use a smaller rank."
            )
        shared = init_context(model, self.num_ctx, self.init_std, self.global_optimizer, rng)
        personal = init_context(model, self.num_ctx, self.init_std, self.local_optimizer, rng)
        return shared, personal

    def client_step(
        self,
        model: PromptModel,
        shared: ContextState,
        personal: ContextState,
        batch: Batch,
        mechanism: Mechanism,
        rng: np.random.Generator,
    ) -> tuple[Upload, ContextState, StepInfo]:
        """Factorize, release noisy factor gradients, step the personal prompt; upload the clipped global sum."""
        factors = factorize(
            personal.context, self.rank, form=self.factorization, power_iterations=self.power_iterations, rng=rng
        )
        residual = factors.residual if self.keep_residual else torch.zeros_like(factors.residual)
        local = factors.u @ factors.v + residual
        grads, losses = per_example_gradients(model, shared.context + local, batch)  # [b, t, e]
        grads_u = grads @ factors.v.T  # [b, t, r]
        grads_v = factors.u.T @ grads  # [b, r, e]
        stacked = torch.cat([grads_u.flatten(1), grads_v.flatten(1)], dim=1)  # clipped together
        released = mechanism.release(Channel.LOCAL, mechanism.clip(Channel.LOCAL, stacked))
        grad_u, grad_v = released.split([factors.u.numel(), factors.v.numel()])
        direction = self._direction(factors, grad_u.view_as(factors.u), grad_v.view_as(factors.v))
        context, optimizer = self.local_optimizer.step(local, direction, personal.optimizer)
        upload = Upload(mechanism.clip(Channel.GLOBAL, grads))
        return upload, ContextState(context, optimizer), StepInfo(mean_loss(losses))

    def server_step(self, shared: ContextState, released: Float[Tensor, "t e"]) -> ContextState:
        """Step the global prompt with the released mean gradient."""
        return ContextState(*self.global_optimizer.step(shared.context, released, shared.optimizer))

    def shared_context(self, shared: ContextState) -> Float[Tensor, "t e"]:
        """Give the global prompt."""
        return shared.context

    def context(self, shared: ContextState, personal: ContextState) -> Float[Tensor, "t e"]:
        """Give the sum of global and personal prompt."""
        return shared.context + personal.context

    def logits(
        self, model: PromptModel, shared: ContextState, personal: ContextState, image_features: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n c"]:
        """Score images with the client's context."""
        return model.logits(image_features, model.text_features(self.context(shared, personal)))

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
