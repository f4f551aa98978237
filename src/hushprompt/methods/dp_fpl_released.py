"""DP-FPL by its authors' released recipe, as it is. For comparison only.

Source: Tran, Sun, Patterson, Milanova, ICLR 2025 (arXiv:2501.13904), and the code that was released with it. Its steps,
which `dp_fpl` takes in another way:

1. The **batch's** mean gradients in u, v and the global prompt are clipped, each to the clip norm C.
2. Noise of `sqrt(T ln(1 / delta)) / epsilon * C / B` is added to those in u and v, as if one example moved C / B.
3. The gradient of l is put together as (g_u v + u g_v **+** u u^T g_u v) / **10**.
4. Both factors are orthonormal, made anew from a Gaussian start at every step; the residual keeps l whole.
5. The server averages the clients' clipped global gradients, adds the same noise over the number of clients, and steps.

The epsilon that is reported is never the nominal one, but what dp_accounting proves for this noise and the sensitivity
2 C of a clipped mean (`privacy/mechanisms/batch_clipping.py`). docs/methods/dp-fpl-released.md says what is not
reproduced.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from hushprompt import checks
from hushprompt.methods.base import Batch, StepInfo, Upload
from hushprompt.methods.context import ContextState, PromptSumConfig, mean_loss
from hushprompt.privacy.config import Channel
from hushprompt.privacy.mechanisms.base import Mechanism
from hushprompt.privacy.release_plan import BatchClipping
from hushprompt.prompts.factorization import Factors, factorize, unstack
from hushprompt.prompts.optimizer import Optimizer
from hushprompt.prompts.prompted_model import PromptedModel
from hushprompt.registry import METHODS

_released_optimizer = partial(Optimizer, learning_rate=1e-3, momentum=0.9, weight_decay=5e-4)


@METHODS.register("dp_fpl_released")
@dataclass(frozen=True, kw_only=True)
class DPFPLReleased(PromptSumConfig):
    """The `method` section of DP-FPL as released."""

    title: ClassVar[str] = "DP-FPL as released"
    needs_two_towers: ClassVar[bool] = False
    channels: ClassVar[frozenset[Channel]] = frozenset({Channel.LOCAL, Channel.GLOBAL})

    rank: int = 8
    """Rank r of the factors, at most min(t, e); min(c t, e) where each class has a context of its own."""
    calibration: Literal["paper", "accountant"] = "paper"
    """How `privacy.epsilon` becomes noise: by the paper's formula, for which it is a name and no guarantee, or so that
    it holds for clipped batches."""
    global_optimizer: Optimizer = field(default_factory=_released_optimizer)
    """Optimizer of the global prompt."""
    local_optimizer: Optimizer = field(default_factory=_released_optimizer)
    """Optimizer of the personal prompt; every client has its own state."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(rank=self.rank)

    @property
    def batch_clipping(self) -> BatchClipping:
        """Two blocks, u and v, on a client."""
        return BatchClipping(num_local_blocks=2, calibration=self.calibration)

    def init(self, model: PromptedModel, rng: np.random.Generator) -> tuple[ContextState, ContextState]:
        """Return the starts of both prompts."""
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
        """Step the personal prompt by noisy clipped means of the factor gradients; upload the global clipped mean."""
        local = personal.context
        factors = factorize(local.flatten(0, -2), self.rank, form="orthonormal", power_iterations=1, rng=rng)
        grads, losses = self.gradients(model, shared.context + local, batch)
        mean = grads.sum(dim=0) / max(len(grads), 1)
        matrix = mean.flatten(0, -2)  # [t, e]
        clipped = mechanism.clip_batch(Channel.LOCAL, matrix @ factors.v.T, factors.u.T @ matrix)
        released = mechanism.release(Channel.LOCAL, clipped)
        direction = _rebuilt(factors, released.value).view_as(local)
        context, optimizer = self.local_optimizer.step(local, direction, personal.optimizer)
        upload = Upload(mechanism.clip_batch(Channel.GLOBAL, mean))
        return upload, ContextState(context, optimizer), StepInfo(mean_loss(losses), released.next_norms)

    def server_step(self, shared: ContextState, released: Float[Tensor, " p"]) -> ContextState:
        """Step the global prompt with the noisy mean over clients, each counting once."""
        return super().server_step(shared, released.view_as(shared.context))


def _rebuilt(factors: Factors, released: Float[Tensor, " p"]) -> Float[Tensor, "t e"]:
    """Put the gradient of l together as the released code does, with its plus sign and its tenth."""
    u, v = factors.u, factors.v
    grad_u, grad_v = unstack(u, v, released / 10)
    first = grad_u @ v
    return first + u @ grad_v + u @ (u.T @ first)
