"""Optimal transport between the patches of an image and a few prompts, regularized by entropy.

Sources: Cuturi 2013 (arXiv:1306.0895) for Sinkhorn's iterations; Benamou et al. 2015 (arXiv:1412.5154), sections 3.1
and 5, for an inequality as a constraint; Li et al. 2024 (arXiv:2403.00041), section 4, for its use.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hushprompt import checks


@dataclass(frozen=True, kw_only=True)
class Transport:
    """How patches and prompts are matched: `method.transport`."""

    mass: float = 0.8
    """Share of the image that is matched, in (0, 1]: every prompt takes mass / n, every patch gives at most 1 / m. 1 is
    balanced transport, less leaves the patches out that fit no prompt. The paper's gamma."""
    regularization: float = 0.1
    """Weight of the entropy, in units of cost 1 - cosine; smaller is sharper and takes more iterations. The paper's
    lambda."""
    max_iterations: int = 100
    """Iterations at most."""
    tolerance: float = 1e-3
    """A problem is done when an iteration moves no potential by more than that, in natural log units. The published
    code has the same number, but stops all problems of a batch together, by their mean."""

    def __post_init__(self) -> None:
        """Check the fields."""
        checks.positive(mass=self.mass, regularization=self.regularization)
        checks.positive(max_iterations=self.max_iterations, tolerance=self.tolerance)
        checks.in_range(0, 1, mass=self.mass)

    def plan(self, cost: Float[Tensor, "*p m n"]) -> Float[Tensor, "*p m n"]:
        """Give the plan of least cost minus entropy for each of many problems, by Sinkhorn's iterations in log domain.

        The plan T of a problem minimizes <T, cost> + regularization sum T (log T - 1) under T 1 <= 1 / m for every
        patch and T' 1 = mass / n for every prompt. The prompts' constraint holds up to rounding, the patches' up to
        `tolerance`, unless `max_iterations` come first.

        Guarantee: a plan depends on the costs of its own problem alone, as each problem stops by itself. An image's
        plans are then a function of that image and the text features, and clipping per example bounds the image's
        influence as it does without transport.

        Args:
            cost: [*p, m, n] of moving mass from patch to prompt, one matrix a problem.
        """
        num_patches, num_prompts = cost.shape[-2:]
        problems = cost.reshape(math.prod(cost.shape[:-2]), num_patches, num_prompts)
        log_kernel = -problems.mT / self.regularization  # [q, n, m]
        log_patch, log_prompt = -math.log(num_patches), math.log(self.mass / num_prompts)
        of_prompts = log_kernel.new_zeros(log_kernel.shape[:2])  # [q, n]
        of_patches = torch.zeros_like(log_kernel[:, 0])  # [q, m]
        active = torch.arange(len(log_kernel), device=cost.device)
        for _ in range(self.max_iterations):
            if len(active) == 0:
                break
            kernel, before = log_kernel[active], of_prompts[active]
            rows = log_patch - (kernel + before[..., None]).logsumexp(dim=1)
            if self.mass < 1:
                rows = rows.clamp(max=0.0)  # a patch that gives less than it may has no potential
            columns = log_prompt - (kernel + rows[:, None]).logsumexp(dim=2)
            of_patches[active], of_prompts[active] = rows, columns
            active = active[(columns - before).abs().amax(dim=1) > self.tolerance]
        plan = (log_kernel + of_prompts[..., None] + of_patches[:, None]).exp()
        return plan.mT.view(cost.shape)
