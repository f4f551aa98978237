"""What a run guarantees to an example that stands more than once in one client's training set.

Neighboring data sets then differ by all k copies. Without sampling, the sum moves by up to k clip norms: the noise
multiplier is divided by k, which is exact. With Poisson sampling each copy is drawn on its own, so the sum moves by j
clip norms with the binomial probability of j out of k: a mixture of Gaussians, whose privacy losses dp_accounting
composes pessimistically. Source: Ganesh 2024 (arXiv:2401.10294), Theorem 3.1.

Where a client is the unit, or a batch is clipped as one, copies do not add up: the unit has them all, or the sum moves
no further but with the probability that any copy is drawn.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from dp_accounting import pld
from scipy.stats import binom

from hushprompt import checks
from hushprompt.privacy import accounting
from hushprompt.privacy.config import Audience
from hushprompt.privacy.plan import PrivacyPlan
from hushprompt.privacy.releases import GaussianReleases
from hushprompt.privacy.sampling import EqualBatchesSampler, PoissonSampler

INTERVAL = 1e-2
"""Discretization of privacy losses; a larger one claims less."""
MOST = 32
"""Copies up to which the sampling is counted."""
SMALLEST_DELTA = 1e-10
"""Delta from which on rounding in the composition of privacy losses cannot matter."""


def epsilon_of_copies(plan: PrivacyPlan, audience: Audience, num_copies: int, client_id: int | None = None) -> float:
    """Return an epsilon for an example and all its copies, at the delta of the plan; an upper bound.

    Args:
        plan: what is released.
        audience: who looks.
        num_copies: how often the example stands in the training set, itself included; at least 1.
        client_id: whose it is; None: the worst client's.
    """
    checks.positive(num_copies=num_copies)
    once = plan.epsilon(audience, None, client_id)
    if num_copies == 1 or plan.config.privacy_unit == "client" or math.isinf(once):
        return once
    parts = [part for part in plan.composed(audience, None, client_id) if not part.is_empty]
    delta, relation = plan.config.delta, plan.accounted_relation
    if plan.release_plan.batch_clipping is not None:
        drawn = [dataclasses.replace(part, sampling_prob=_any(part.sampling_prob, num_copies)) for part in parts]
        return max(once, accounting.epsilon(drawn, delta=delta, relation=relation))
    summed = [
        dataclasses.replace(part, noise_multiplier=part.noise_multiplier / num_copies, sampling_prob=1.0)
        for part in parts
    ]
    bound = accounting.epsilon(summed, delta=delta, relation=relation)
    draws_each = isinstance(plan.sampler, (PoissonSampler, EqualBatchesSampler))
    if draws_each and num_copies <= MOST and delta >= SMALLEST_DELTA and relation == "add_remove":
        bound = min(bound, _mixture_epsilon(parts, num_copies, delta))
    return max(once, bound)


def _any(probability: float, num_copies: int) -> float:
    """Return the probability that any of the copies is drawn."""
    return -math.expm1(num_copies * math.log1p(-probability)) if probability < 1 else 1.0


def _mixture_epsilon(parts: Sequence[GaussianReleases], num_copies: int, delta: float) -> float:
    """Compose mixtures of Gaussians, whose sensitivities are the number of copies that are drawn."""
    losses = pld.privacy_loss_distribution.identity(value_discretization_interval=INTERVAL)
    drawn = range(num_copies + 1)
    for part in parts:
        one = pld.privacy_loss_distribution.from_mixture_gaussian_mechanism(
            standard_deviation=part.noise_multiplier,
            sensitivities=list(drawn),
            sampling_probs=binom.pmf(drawn, num_copies, part.sampling_prob).tolist(),
            value_discretization_interval=INTERVAL,
        )
        losses = losses.compose(one.self_compose(part.num_steps))
    return float(losses.get_epsilon_for_delta(delta))
