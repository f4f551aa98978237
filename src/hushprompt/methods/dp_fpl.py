"""DP-FPL: a global prompt plus a personal prompt that is trained through low-rank factors.

Source: Tran, Sun, Patterson, Milanova, "Privacy-Preserving Personalized Federated Prompt Learning for Multimodal Large
Language Models", ICLR 2025 (arXiv:2501.13904). Our `shared.context` is their p_G, `personal.context` their p_i
(local prompt), `u`, `v`, `residual` their u_i, v_i, r_i. What differs is listed in docs/methods/dp-fpl.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from hushprompt import checks
from hushprompt.errors import ConfigError
from hushprompt.methods.base import Batch, StepInfo, Upload
from hushprompt.methods.context import ContextState, PromptSumConfig, mean_loss
from hushprompt.privacy.config import Channel
from hushprompt.privacy.mechanisms.base import Mechanism
from hushprompt.prompts.factorization import Factors, factor_gradients, factorize, unstack
from hushprompt.prompts.prompted_model import PromptedModel
from hushprompt.registry import METHODS


@METHODS.register("dp_fpl")
@dataclass(frozen=True, kw_only=True)
class DPFPL(PromptSumConfig):
    """The `method` section of DP-FPL."""

    title: ClassVar[str] = "DP-FPL"
    needs_two_towers: ClassVar[bool] = False
    channels: ClassVar[frozenset[Channel]] = frozenset({Channel.LOCAL, Channel.GLOBAL})

    rank: int = 8
    """Rank r of the factors, at most min(t, e); min(c t, e) where each class has a context of its own."""
    factorization: Literal["projection", "orthonormal", "svd", "none"] = "orthonormal"
    """How l = u v + r is made: "projection", "orthonormal" or "svd"; "none" trains l itself, at full rank (ablation,
    for which rank and power iterations mean nothing)."""
    power_iterations: int = 1
    """Power iterations per factorization."""
    update: Literal["factors", "tangent"] = "tangent"
    """Step the factors, or step l along the tangent-space gradient (needs factorization = "orthonormal")."""
    keep_residual: bool = True
    """False drops r at every step: the personal prompt stays low rank (ablation)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(rank=self.rank, power_iterations=self.power_iterations)
        if self.factorization == "none":
            if self.update == "factors" or not self.keep_residual:
                raise ConfigError(
                    'method.factorization = "none" has no factors to step and no residual to drop. '
                    'Use update = "tangent" and keep_residual = true, or another factorization.'
                )
        elif self.update == "tangent" and self.factorization != "orthonormal":
            raise ConfigError(
                'method.update = "tangent" needs both factors orthonormal, got method.factorization = '
                f'"{self.factorization}". Use factorization = "orthonormal", or update = "factors".'
            )

    def init(self, model: PromptedModel, rng: np.random.Generator) -> tuple[ContextState, ContextState]:
        """Return the starts of both prompts; the personal one is drawn, for factors of zero would not move."""
        if self.factorization != "none":
            self.check_rank(model, self.rank)
        return super().init(model, rng)

    def client_step(
        self,
        model: PromptedModel,
        shared: ContextState,
        personal: ContextState,
        batch: Batch,
        mechanism: Mechanism,
        rng: np.random.Generator,
    ) -> tuple[Upload, ContextState, StepInfo]:
        """Factorize, release noisy factor gradients, step the personal prompt; upload the clipped global sum.

        Where each class has a context of its own, they are stacked to one matrix: t stands for c t in the factors.
        """
        factors = self._factorize(personal.context.flatten(0, -2), rng)  # [t, e]
        local = personal.context
        if factors is not None and not self.keep_residual:
            local = (factors.u @ factors.v).view_as(local)
        grads, losses = self.gradients(model, shared.context + local, batch)
        if factors is None:
            released = mechanism.release(Channel.LOCAL, mechanism.clip(Channel.LOCAL, grads))
            direction = released.value
        else:
            stacked = factor_gradients(factors.u, factors.v, grads.flatten(1, -2))  # clipped together
            released = mechanism.release(Channel.LOCAL, mechanism.clip(Channel.LOCAL, stacked))
            rate = self.local_optimizer.rate(personal.optimizer.num_steps)
            direction = self._direction(factors, released.value, rate).view_as(local)
        context, optimizer = self.local_optimizer.step(local, direction, personal.optimizer)
        upload = Upload(mechanism.clip(Channel.GLOBAL, grads))
        return upload, ContextState(context, optimizer), StepInfo(mean_loss(losses), released.next_norms)

    def _factorize(self, local: Float[Tensor, "t e"], rng: np.random.Generator) -> Factors | None:
        """Split the personal prompt; None where it is trained at full rank."""
        if self.factorization == "none":
            return None
        return factorize(local, self.rank, form=self.factorization, power_iterations=self.power_iterations, rng=rng)

    def _direction(
        self, factors: Factors, released: Float[Tensor, " p"], rate: Float[Tensor, ""]
    ) -> Float[Tensor, "t e"]:
        """Return the gradient for l that the released factor gradients stand for.

        "tangent": the projection of dL/dl on the tangent space of u v, g_u v + u g_v - u u^T g_u v. "factors": what
        (l - l') / rate is after u' = u - rate g_u, v' = v - rate g_v, l' = u' v' + r.
        """
        u, v = factors.u, factors.v
        grad_u, grad_v = unstack(u, v, released)
        first_order = grad_u @ v + u @ grad_v
        if self.update == "tangent":
            return first_order - u @ (u.T @ grad_u) @ v
        return first_order - rate * grad_u @ grad_v
