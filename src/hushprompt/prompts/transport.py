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

MAX_COST = 2.0
"""Largest cost, that of opposite directions."""
LARGEST_EXPONENT = 25.0
"""Largest cost over regularization up to which factors cannot overflow. Sinkhorn's step does not expand differences of
log factors, so the iterates stay within about twice this of 0, and their products with the kernel within three times:
exp(75) is well inside of single precision's exp(87)."""


@dataclass(frozen=True, kw_only=True)
class Transport:
    """How patches and prompts are matched: `method.transport`."""

    mass: float = 0.8
    """Share of the image that is matched, in (0, 1]: every prompt takes mass / n, every patch gives at most 1 / m. 1 is
    balanced transport, less leaves the patches out that fit no prompt. The paper's gamma."""
    regularization: float = 0.1
    """Weight of the entropy, in units of cost 1 - cosine; smaller is sharper and takes more iterations. The paper's
    lambda."""
    num_iterations: int = 50
    """Iterations, the same number for every problem whatever its costs. 50 leave a mean error in the embedded model's
    logits of 0.00002; sharper plans need more."""

    def __post_init__(self) -> None:
        checks.positive(mass=self.mass, regularization=self.regularization)
        checks.positive(num_iterations=self.num_iterations)
        checks.in_range(0, 1, mass=self.mass)

    def plan(self, cost: Float[Tensor, "*p m n"]) -> Float[Tensor, "*p m n"]:
        """Return the plan of least cost minus entropy for each of many problems, by Sinkhorn's iterations.

        The plan T of a problem minimizes <T, cost> + regularization sum T (log T - 1) under T 1 <= 1 / m for every
        patch and T' 1 = mass / n for every prompt. The prompts' constraint holds up to rounding, the patches' in the
        limit of many iterations. Sharp plans are found in log domain, others in a sixth of the time by factors.

        Guarantee: a plan depends on the costs of its own problem alone. An image's plans are then a function of that
        image and the text features, and clipping per example bounds the image's influence as it does without transport.
        That is why nothing stops early: a rule for all problems would couple them, and a rule for each would let
        rounding, which depends on how problems lie side by side, decide about whole iterations.

        Args:
            cost: [*p, m, n] of moving mass from patch to prompt, one matrix a problem; 1 - cosine, so within [0, 2].
        """
        num_patches, num_prompts = cost.shape[-2:]
        problems = cost.reshape(math.prod(cost.shape[:-2]), num_patches, num_prompts)
        log_kernel = (problems / -self.regularization).permute(2, 1, 0).contiguous()  # [n, m, q], problems side by side
        is_safe = self.regularization * LARGEST_EXPONENT >= MAX_COST
        plan = self._by_factors(log_kernel.exp_()) if is_safe else self._by_potentials(log_kernel)
        return plan.permute(2, 1, 0).reshape(cost.shape)

    def _by_potentials(self, log_kernel: Float[Tensor, "n m q"]) -> Float[Tensor, "n m q"]:
        """Iterate on the potentials, in log domain: nothing overflows, however sharp the plans."""
        num_prompts, num_patches, _ = log_kernel.shape
        log_patch, log_prompt = -math.log(num_patches), math.log(self.mass / num_prompts)
        of_prompts = torch.zeros_like(log_kernel[:, 0])  # [n, q] potentials over regularization
        of_patches = torch.zeros_like(log_kernel[0])  # [m, q]
        for _ in range(self.num_iterations):
            of_patches = log_patch - (log_kernel + of_prompts[:, None]).logsumexp(dim=0)
            if self.mass < 1:
                of_patches = of_patches.clamp(max=0.0)  # a patch that gives less than it may has no potential
            of_prompts = log_prompt - (log_kernel + of_patches).logsumexp(dim=1)
        return (log_kernel + of_prompts[:, None] + of_patches).exp()

    def _by_factors(self, kernel: Float[Tensor, "n m q"]) -> Float[Tensor, "n m q"]:
        """Iterate on the potentials' exponentials: the same iterates up to rounding, with no exp or log in a step."""
        num_prompts, num_patches, _ = kernel.shape
        rows, weighted = kernel.unbind(), kernel / (num_patches * self.mass / num_prompts)
        of_prompts = torch.full_like(kernel[:, 0], num_patches)  # [n, q] times a patch's share, so that its limit is 1
        of_patches = torch.ones_like(kernel[0])  # [m, q]
        for _ in range(self.num_iterations):
            factors = of_prompts.unbind()
            total = rows[0] * factors[0]
            for row, factor in zip(rows[1:], factors[1:], strict=True):
                total = torch.addcmul(total, row, factor)
            of_patches = (total.clamp(min=1.0) if self.mass < 1 else total).reciprocal_()
            of_prompts = (weighted * of_patches).sum(dim=1).reciprocal_()
        return kernel * (of_prompts / num_patches)[:, None] * of_patches
