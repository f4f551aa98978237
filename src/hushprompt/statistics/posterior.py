"""From noisy sums to estimates: post-processing of what was released, free of privacy cost.

Source: empirical Bayes for many means (Efron & Morris 1973), with the strength of the prior averaged over by its
marginal likelihood on the release itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from hushprompt import checks
from hushprompt.statistics.metric import Metric

GRID = torch.linspace(-4.0, 2.5, 27, dtype=torch.float64).exp()
"""Prior variances that are averaged over, in units of their center."""
CENTER, CENTER_WITH_TEXT, SPREAD = 0.1, 0.07, 2.0
"""Of the log-normal prior on l, in units of the public between-class variance."""
SLOPE_STD = 0.1
"""Prior standard deviation of how far kappa is off for this task, relative to kappa."""
SHARED_VARIANCE = 0.05
"""Prior variance of what all classes share beyond g, in units of the between-class variance."""
IGNORANCE_POWER = 4


@dataclass(frozen=True)
class SharedMean:
    """Where the task's images lie, all together."""

    value: Float64[Tensor, " r"]
    """g: offset from the public mean, shrunk toward 0."""
    variance: float
    """v_g: of one coordinate."""


def shared_mean(total: Float64[Tensor, " r"], num_images: float, noise_std: float, metric: Metric) -> SharedMean:
    """Estimate the task's mean from the noisy sum of all clients' `mean_rows` (positive-part James-Stein).

    Args:
        total: [r] G, the sum with noise.
        num_images: public number of images of all clients, > 0.
        noise_std: standard deviation of the noise in a coordinate of `total`; 0 without noise.
        metric: public.
    """
    checks.positive(num_images=num_images)
    mean, variance = total / num_images, (noise_std / num_images) ** 2
    length, longest = float(mean.square().sum()), metric.clip_mean**2  # a mean of clipped rows is no longer
    keep = max(0.0, 1 - len(mean) * variance / length) if length > 0 else 0.0
    if keep == 0:
        return SharedMean(torch.zeros_like(mean), min(length, longest) / len(mean) + 0.1 * metric.between)
    shrunk = keep * mean * min(1.0, metric.clip_mean / (keep * length**0.5))
    return SharedMean(shrunk, min(keep * variance, longest / len(mean)) + 1e-12)


@dataclass(frozen=True)
class ClassPosterior:
    """What the class sums say of each class, beyond text and shared mean."""

    estimate: Float64[Tensor, "c r"]
    """dhat: expected offset of a class mean from g + t_c."""
    variance: float
    """Mean posterior variance of a coordinate of a class mean."""
    ignorance: float
    """1 where nothing was learned, 0 where all was."""


@dataclass(frozen=True)
class _Fit:
    """The posterior at one prior variance, and how likely the release was under it."""

    log_likelihood: float
    estimate: Float64[Tensor, "c r"]
    variance: float
    unlearned: float


def class_posterior(
    sums: Float64[Tensor, "c r"],
    noise_std: Float64[Tensor, " c"],
    counts: Float64[Tensor, " c"],
    metric: Metric,
    shared: SharedMean,
    texts: Float64[Tensor, "c r"] | None,
) -> ClassPosterior:
    """Estimate every class's offset: y_c = mu + delta F_c + u_c + noise with u ~ N(0, l tau I), l averaged out.

    A class that nobody holds has no observation; its estimate is what the other classes share.

    Args:
        sums: [c, r] Z, noisy sums of clipped `residual_rows` over all clients.
        noise_std: [c] standard deviation of the noise in each row of `sums`; 0 without noise.
        counts: [c] public expected number of images; 0 for a class that nobody holds.
        metric: public.
        shared: what the residuals were taken from.
        texts: F = `metric.texts(...)`; None where classes have no text.
    """
    held = counts > 0
    n = counts.where(held, 1.0)[:, None]
    noise = (noise_std[:, None] / n) ** 2 + metric.within / n  # N_c
    noise = noise.where(held[:, None], math.inf)
    observed = (sums / n).where(held[:, None], 0.0)
    center = CENTER if texts is None else CENTER_WITH_TEXT
    fits = [_fit(observed, noise, held, float(step) * center, center, metric, shared, texts) for step in GRID]
    weights = torch.tensor([fit.log_likelihood for fit in fits], dtype=torch.float64).softmax(dim=0).tolist()
    estimate = torch.stack([weight * fit.estimate for weight, fit in zip(weights, fits, strict=True)]).sum(dim=0)
    variance = sum(weight * fit.variance for weight, fit in zip(weights, fits, strict=True))
    unlearned = sum(weight * fit.unlearned for weight, fit in zip(weights, fits, strict=True))
    return ClassPosterior(estimate, variance, unlearned**IGNORANCE_POWER)


def _fit(
    observed: Float64[Tensor, "c r"],
    noise: Float64[Tensor, "c r"],
    held: Tensor,
    prior: float,
    center: float,
    metric: Metric,
    shared: SharedMean,
    texts: Float64[Tensor, "c r"] | None,
) -> _Fit:
    """Estimate at the prior variance `prior` tau, with mu and delta at their posterior means."""
    spread = prior * metric.between  # L
    shared_variance = shared.variance + SHARED_VARIANCE * metric.between
    precision = 1 / (noise + spread)  # 0 for a class that nobody holds
    total = precision.sum(dim=0) + 1 / shared_variance
    log_likelihood = -0.5 * (math.log(prior / center) / SPREAD) ** 2
    slope = torch.zeros((), dtype=torch.float64)
    if texts is not None:
        std = SLOPE_STD * (metric.kappa or 0.0)
        offset = texts - (precision * texts).sum(dim=0) / total
        rest = observed - (precision * observed).sum(dim=0) / total
        slope = (precision * texts * rest).sum() / ((precision * texts * offset).sum() + std**-2)
        log_likelihood -= 0.5 * float(slope / std) ** 2
        observed_without = observed - slope * texts
    else:
        observed_without = observed
    common = (precision * observed_without).sum(dim=0) / total  # mu
    errors = ((observed_without - common).square() * precision).sum() - precision[held].log().sum()
    shared_errors = (common.square() / shared_variance + (shared_variance * total).log()).sum()
    base = common if texts is None else common + slope * texts
    unlearned = 1 - spread * precision  # N / (L + N)
    estimate = base + spread * precision * (observed - base)
    log_likelihood -= 0.5 * float(errors + shared_errors)
    return _Fit(log_likelihood, estimate, float((spread * unlearned).mean()), float(unlearned.mean()))
