"""Optimizers as pure functions: (parameter, gradient, state) to (parameter, state).

Each client keeps a state of its own; the shared prompt has one. Both only ever see released gradients, so they are
post-processing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hushprompt import checks


@dataclass(frozen=True)
class OptimizerState:
    """What an optimizer remembers of one parameter."""

    num_steps: Float[Tensor, ""]
    """Steps taken so far."""
    first: Float[Tensor, "*p"]
    """Momentum buffer (SGD), or first moment (Adam)."""
    second: Float[Tensor, "*p"]
    """Second moment (Adam); zero for SGD."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """SGD with momentum, or Adam (Kingma & Ba 2015, arXiv:1412.6980), with weight decay."""

    name: Literal["sgd", "adam"] = "sgd"
    """Update rule."""
    learning_rate: float = 0.1
    """Step length, in context units per gradient unit (sgd) or per step (adam)."""
    momentum: float = 0.9
    """Decay of the first moment, in [0, 1); 0 is plain SGD."""
    second_moment_decay: float = 0.99
    """Decay of Adam's second moment, in [0, 1)."""
    weight_decay: float = 0.0
    """L2 pull toward zero, added to the gradient."""

    def __post_init__(self) -> None:
        """Check the fields."""
        checks.positive(learning_rate=self.learning_rate)
        checks.in_range(0, 1 - 1e-9, momentum=self.momentum, second_moment_decay=self.second_moment_decay)
        checks.non_negative(weight_decay=self.weight_decay)

    def init(self, parameter: Float[Tensor, "*p"]) -> OptimizerState:
        """Give the state before the first step."""
        zeros = torch.zeros_like(parameter)
        return OptimizerState(torch.zeros((), device=parameter.device), zeros, zeros)

    def step(
        self, parameter: Float[Tensor, "*p"], grad: Float[Tensor, "*p"], state: OptimizerState
    ) -> tuple[Float[Tensor, "*p"], OptimizerState]:
        """Take one step against `grad`."""
        grad = grad + self.weight_decay * parameter
        count = state.num_steps + 1
        if self.name == "sgd":
            first = self.momentum * state.first + grad
            return parameter - self.learning_rate * first, OptimizerState(count, first, state.second)
        first = self.momentum * state.first + (1 - self.momentum) * grad
        second = self.second_moment_decay * state.second + (1 - self.second_moment_decay) * grad**2
        mean = first / (1 - self.momentum**count)
        scale = (second / (1 - self.second_moment_decay**count)).sqrt() + 1e-8
        return parameter - self.learning_rate * mean / scale, OptimizerState(count, first, second)
