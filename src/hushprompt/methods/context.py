"""What the methods that learn one plain context have in common."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hushprompt.backbones.prompts import PromptModel
from hushprompt.methods.optimizer import Optimizer, OptimizerState


@dataclass(frozen=True)
class ContextState:
    """A context and the state of the optimizer that moves it."""

    context: Float[Tensor, "t e"]
    optimizer: OptimizerState


def init_context(
    model: PromptModel, num_ctx: int, init_std: float, optimizer: Optimizer, rng: np.random.Generator
) -> ContextState:
    """Draw a context ~ N(0, init_std^2) with a fresh optimizer; ConfigError if a prompt would not fit the window."""
    context = random_context(model, num_ctx, init_std, rng)
    return ContextState(context, optimizer.init(context))


def random_context(model: PromptModel, num_ctx: int, init_std: float, rng: np.random.Generator) -> Float[Tensor, "t e"]:
    """Draw a context ~ N(0, init_std^2); ConfigError if a prompt would not fit the window."""
    model.check_context(num_ctx)
    draw = rng.normal(0.0, init_std, size=(num_ctx, model.token_width))
    return torch.from_numpy(draw).float().to(model.device)


def mean_loss(losses: Float[Tensor, " b"]) -> float:
    """Give the mean loss of a batch, NaN for an empty one. Not private."""
    return float(losses.mean())
