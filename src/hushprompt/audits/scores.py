"""Membership scores of examples under one attacked model: larger means "looks as if it was trained on".

All are pure functions of what models say about candidate examples. `s` counts shadow models, `m` candidates, `p`
population examples that no model ever trained on, `c` classes. Sources: LiRA, Carlini et al. 2022 (arXiv:2112.03570);
RMIA, Zarifzadeh et al. 2024 (arXiv:2312.03262); loss threshold, Yeom et al. 2018 (arXiv:1709.01604); scores over a
transcript against a null distribution, FedMIA, Zhu et al. 2025 (arXiv:2402.06289).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import logsumexp
from scipy.stats import norm
from torch import Tensor

from hushprompt import checks

TUNING_GRID = tuple(float(a) for a in np.linspace(0.0, 1.0, 11))
"""Values of RMIA's `a` that are tried on a shadow model."""
LEAST_LOSS = 1e-9
"""Loss that stands for none: its logit is finite."""


def answer_log_probs(losses: Float[Tensor, " n"]) -> Float[Tensor, "n 2"]:
    """Return ln p and ln(1 - p) of answers, p being the geometric mean of the probabilities of an answer's tokens.

    So an answer is attacked as one of two classes is: -ln p is its loss per token.

    >>> answer_log_probs(torch.tensor([0.5])).exp()
    tensor([[0.6065, 0.3935]], dtype=torch.float64)
    """
    log_p = -losses.double().clamp(min=LEAST_LOSS)
    return torch.stack([log_p, (-torch.expm1(log_p)).log()], dim=1)


def true_log_probs(log_probs: Float[np.ndarray, "*s n c"], labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, "*s n"]:
    """Return ln p_y [*s, n], minus the cross-entropy: the loss-threshold attack's score."""
    return np.take_along_axis(log_probs, labels[..., :, None] + np.zeros_like(log_probs[..., :1], dtype=int), -1)[
        ..., 0
    ]


def confidence_logits(
    log_probs: Float[np.ndarray, "*s n c"], labels: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "*s n"]:
    """Return LiRA's phi = ln(p_y / (1 - p_y)) [*s, n], with 1 - p_y added up over the other classes.

    Source: Carlini et al. 2022, section 4.C. The subtraction 1 - p_y would lose all digits of a sure prediction.

    >>> confidence_logits(np.log(np.array([[0.8, 0.15, 0.05]])), np.array([0])).round(4)
    array([1.3863])
    """
    others = log_probs.copy()
    others[..., np.arange(len(labels)), labels] = -np.inf
    return true_log_probs(log_probs, labels) - logsumexp(others, axis=-1)


def lira_online(
    target: Float[np.ndarray, " m"], shadows: Float[np.ndarray, "s m"], is_in: Bool[np.ndarray, "s m"]
) -> Float[np.ndarray, " m"]:
    """Return the log-likelihood ratio of "in" against "out", both Gaussian with a mean of each example.

    Source: Carlini et al. 2022, Algorithm 1. The variances are global, one for "in" and one for "out" over all
    examples, as the paper advises for few shadow models. The members' variance comes from the members alone (the
    reference plot code takes the members' for both).

    Args:
        target: [m] phi of each candidate under the attacked model.
        shadows: [s, m] the same under the shadow models.
        is_in: [s, m] which shadow model trained on which candidate.
    """
    mean_in, mean_out = shadow_means(shadows, is_in)
    std_in, std_out = _global_std(shadows, is_in), _global_std(shadows, ~is_in)
    return norm.logpdf(target, mean_in, std_in) - norm.logpdf(target, mean_out, std_out)


def lira_offline(
    target: Float[np.ndarray, " m"], shadows: Float[np.ndarray, "s m"], is_in: Bool[np.ndarray, "s m"]
) -> Float[np.ndarray, " m"]:
    """Return how many standard deviations phi lies above what shadow models without the example say.

    Source: Carlini et al. 2022, section 6.C: a one-sided test against the "out" Gaussian, with a global variance. Also
    the null distribution of FedMIA (section 4), where `target` is a similarity over the rounds of a transcript.
    """
    _, mean_out = shadow_means(shadows, is_in)
    return (target - mean_out) / _global_std(shadows, ~is_in)


def standardized(
    target: Float[np.ndarray, " m"], shadows: Float[np.ndarray, "s m"], is_in: Bool[np.ndarray, "s m"]
) -> Float[np.ndarray, " m"]:
    """Return `lira_offline` with a standard deviation of each example, for scores whose scale differs by example.

    With fewer than two shadow models without an example, that example takes the average deviation.
    """
    _, mean_out = shadow_means(shadows, is_in)
    num_out = (~is_in).sum(axis=0)
    squares = np.where(is_in, 0.0, (shadows - mean_out) ** 2).sum(axis=0)
    known = num_out >= 2
    variance = np.where(known, squares / np.maximum(num_out - 1, 1), 0.0)
    fallback = variance[known].mean() if known.any() else 1.0
    variance = np.where(known & (variance > 0), variance, fallback)
    return (target - mean_out) / np.sqrt(np.maximum(variance, np.finfo(float).tiny))


def rmia_offline(
    target: Float[np.ndarray, " m"],
    shadows: Float[np.ndarray, "s m"],
    is_in: Bool[np.ndarray, "s m"],
    target_population: Float[np.ndarray, " p"],
    shadow_population: Float[np.ndarray, "s p"],
    *,
    a: float,
    gamma: float = 1.0,
) -> Float[np.ndarray, " m"]:
    """Return the share of the population that the candidate beats by more than `gamma`.

    Source: Zarifzadeh et al. 2024, Eq. 4 and appendix B.2.2: ratio(x) = p_target(x) / p(x), where p(x) is the mean over
    shadow models without x, corrected to ((1 + a) mean_out + (1 - a)) / 2; the same for the population.

    Args:
        target: [m] probability of the true class of each candidate under the attacked model.
        shadows: [s, m] the same under the shadow models.
        is_in: [s, m] which shadow model trained on which candidate.
        target_population: [p] probability of the true class of each population example under the attacked model.
        shadow_population: [s, p] the same under the shadow models, none of which trained on them.
        a: how much training on x raises p(x); `tune_rmia` finds it.
        gamma: threshold on the ratio of ratios.

    >>> half = np.full((2, 1), 0.5)
    >>> out = np.zeros((2, 1), dtype=bool)
    >>> rmia_offline(np.array([0.9]), half, out, np.array([0.5, 1.0]), np.full((2, 2), 0.5), a=1.0)
    array([0.5])
    """
    _, mean_out = shadow_means(shadows, is_in)
    ratio = target / _corrected(mean_out, a)
    population = np.sort(target_population / _corrected(shadow_population.mean(axis=0), a))
    # ratio / z > gamma is z < ratio / gamma
    return np.searchsorted(population, ratio / gamma, side="left") / len(population)


def tune_rmia(auc_of: Callable[[float], float]) -> float:
    """Return the `a` with the largest AUC, as `auc_of` finds it by attacking shadow models; the first of equals."""
    return max(TUNING_GRID, key=auc_of)


def shadow_means(
    shadows: Float[np.ndarray, "s m"], is_in: Bool[np.ndarray, "s m"]
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Return each example's mean over the shadow models with it and over those without it.

    Where all shadow models, or none, trained on an example, the missing mean is the other one moved by the average
    difference over the other examples.

    Raises:
        ConfigError: there are fewer than two shadow models.
    """
    checks.in_range(2, float("inf"), num_shadow_models=len(shadows))
    num_in, num_out = is_in.sum(axis=0), (~is_in).sum(axis=0)
    mean_in = np.where(is_in, shadows, 0.0).sum(axis=0) / np.maximum(num_in, 1)
    mean_out = np.where(is_in, 0.0, shadows).sum(axis=0) / np.maximum(num_out, 1)
    both = (num_in > 0) & (num_out > 0)
    gap = float((mean_in - mean_out)[both].mean()) if both.any() else 0.0
    return np.where(num_in > 0, mean_in, mean_out + gap), np.where(num_out > 0, mean_out, mean_in - gap)


def _global_std(shadows: Float[np.ndarray, "s m"], chosen: Bool[np.ndarray, "s m"]) -> float:
    """Return one standard deviation around each example's own mean, over all examples; one degree lost per example."""
    counts = chosen.sum(axis=0)
    means = np.where(chosen, shadows, 0.0).sum(axis=0) / np.maximum(counts, 1)
    squares = np.where(chosen, (shadows - means) ** 2, 0.0).sum()
    freedom = int(np.maximum(counts - 1, 0).sum())
    if freedom == 0 or squares == 0:
        return float(max(np.std(shadows), np.finfo(float).tiny))
    return float(np.sqrt(squares / freedom))


def _corrected(mean_out: Float[np.ndarray, " n"], a: float) -> Float[np.ndarray, " n"]:
    """Return p(x) over models with and without x from the mean over models without it."""
    return ((1 + a) * mean_out + (1 - a)) / 2
