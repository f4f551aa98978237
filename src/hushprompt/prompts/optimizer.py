"""Optimizers and schedules as pure functions: (parameter, gradient, state) to (parameter, state).

Each client keeps a state of its own; the shared prompt has one. Both only ever see released gradients, so they are
post-processing. A schedule is a function of the number of steps taken, which the state counts and a checkpoint keeps.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt import checks
from hushprompt.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class OptimizerState:
    """What an optimizer remembers of one parameter."""

    num_steps: Int[Tensor, ""]
    """Steps taken so far."""
    first: Float[Tensor, "*p"]
    """Momentum buffer (SGD), or first moment (Adam)."""
    second: Float[Tensor, "*p"]
    """Second moment (Adam); zero for SGD."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """SGD, Adam (Kingma & Ba 2015, arXiv:1412.6980) or AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101).

    The numbers are those of torch.optim and its schedulers, and the tests compare them.
    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    """Update rule. "adam" adds the weight decay to the gradient, "adamw" shrinks the parameter by it."""
    learning_rate: float = 0.1
    """Step length, in context units per gradient unit (sgd) or per step (adam, adamw); what a schedule multiplies."""
    momentum: float = 0.9
    """Decay of the first moment, in [0, 1); 0 is plain SGD."""
    is_nesterov: bool = False
    """Look one step of momentum ahead (sgd only)."""
    second_moment_decay: float = 0.99
    """Decay of Adam's second moment, in [0, 1)."""
    weight_decay: float = 0.0
    """Pull toward zero: L2 term on the gradient (sgd, adam), or share of the parameter per unit of rate (adamw)."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """How the rate goes on after the warm-up: "cosine" falls to `final_fraction` at the last step (Loshchilov & Hutter
    2017, arXiv:1608.03983), "step" multiplies it by `step_factor` every `step_length` steps."""
    warmup_steps: int = 0
    """Steps over which the rate rises linearly to `learning_rate`; step k of w takes k / w of it. 0: no warm-up."""
    schedule_steps: int = 0
    """Steps until the cosine has fallen, warm-up included; 0: all steps of the run."""
    final_fraction: float = 0.0
    """Where the cosine ends, as a fraction of `learning_rate`, in [0, 1]."""
    step_length: int = 0
    """Steps between two falls of "step"; greater than 0 there."""
    step_factor: float = 0.1
    """Factor of each fall of "step", in (0, 1]."""

    def __post_init__(self) -> None:
        checks.positive(learning_rate=self.learning_rate, step_factor=self.step_factor)
        checks.in_range(0, 1 - 1e-9, momentum=self.momentum, second_moment_decay=self.second_moment_decay)
        checks.in_range(0, 1, final_fraction=self.final_fraction, step_factor=self.step_factor)
        checks.non_negative(
            weight_decay=self.weight_decay,
            warmup_steps=self.warmup_steps,
            schedule_steps=self.schedule_steps,
            step_length=self.step_length,
        )
        if self.is_nesterov and (self.name != "sgd" or self.momentum == 0):
            raise ConfigError('is_nesterov needs name = "sgd" and a momentum > 0. Set is_nesterov = false.')
        if self.schedule == "step" and self.step_length == 0:
            raise ConfigError('step_length must be > 0 with schedule = "step": the number of steps between two falls.')
        if self.schedule == "cosine" and 0 < self.schedule_steps <= self.warmup_steps:
            raise ConfigError(
                f"schedule_steps must be > warmup_steps = {self.warmup_steps}, got {self.schedule_steps}: "
                "the warm-up is part of the schedule."
            )

    def init(self, parameter: Float[Tensor, "*p"]) -> OptimizerState:
        """Return the state before the first step."""
        zeros = torch.zeros_like(parameter)
        return OptimizerState(torch.zeros((), dtype=torch.int64, device=parameter.device), zeros, zeros)

    def rate(self, num_steps: Int[Tensor, ""]) -> Float[Tensor, ""]:
        """Return the rate of the step that follows `num_steps` taken ones, in float64.

        Raises:
            ConfigError: a cosine that nobody told its number of steps.
        """
        steps = num_steps.double()
        after = (steps - self.warmup_steps).clamp(min=0.0)
        factor = torch.ones_like(steps)
        if self.schedule == "cosine":
            if self.schedule_steps == 0:
                raise ConfigError('schedule_steps must be > 0 with schedule = "cosine" outside a run.')
            done = (after / (self.schedule_steps - self.warmup_steps)).clamp(max=1.0)
            factor = self.final_fraction + (1 - self.final_fraction) * (1 + torch.cos(math.pi * done)) / 2
        elif self.schedule == "step":
            factor = self.step_factor ** torch.floor(after / self.step_length)
        warmup = ((steps + 1) / max(self.warmup_steps, 1)).clamp(max=1.0)
        return self.learning_rate * warmup * factor

    def step(
        self, parameter: Float[Tensor, "*p"], grad: Float[Tensor, "*p"], state: OptimizerState
    ) -> tuple[Float[Tensor, "*p"], OptimizerState]:
        """Take one step against `grad`."""
        rate, count = self.rate(state.num_steps), state.num_steps + 1
        if self.name == "adamw":
            parameter = parameter * (1 - rate * self.weight_decay)
        else:
            grad = grad + self.weight_decay * parameter
        if self.name == "sgd":
            first = self.momentum * state.first + grad
            direction = grad + self.momentum * first if self.is_nesterov else first
            return parameter - rate * direction, OptimizerState(count, first, state.second)
        first = self.momentum * state.first + (1 - self.momentum) * grad
        second = self.second_moment_decay * state.second + (1 - self.second_moment_decay) * grad**2
        mean = first / (1 - self.momentum ** count.double())
        scale = (second / (1 - self.second_moment_decay ** count.double())).sqrt() + 1e-8
        return parameter - rate * mean / scale, OptimizerState(count, first, second)


def with_schedule_steps(method: T, num_steps: int) -> T:
    """Tell a method's optimizers how many steps the run takes; one that says so itself keeps its number.

    Args:
        method: frozen dataclass with any number of `Optimizer` fields.
        num_steps: steps of the whole run.

    Raises:
        ConfigError: the warm-up alone would take longer than the run.
    """
    told = {
        field.name: dataclasses.replace(optimizer, schedule_steps=num_steps)
        for field in dataclasses.fields(method)  # type: ignore[arg-type]
        if isinstance(optimizer := getattr(method, field.name), Optimizer) and _needs_steps(optimizer)
    }
    return dataclasses.replace(method, **told) if told and num_steps else method  # type: ignore[type-var]


def _needs_steps(optimizer: Optimizer) -> bool:
    """True if the schedule depends on the length of the run."""
    return optimizer.schedule == "cosine" and optimizer.schedule_steps == 0
