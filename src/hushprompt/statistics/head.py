"""The classifier that the statistics amount to: a weight and a bias for each class, and unit-norm embeddings.

Without information it is exactly the zero-shot classifier; with all of it, the cosine rule in the metric.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from hushprompt.errors import UnfitError
from hushprompt.statistics.metric import Metric
from hushprompt.statistics.posterior import ClassPosterior, SharedMean

LOGITS_WITHOUT_TEXT = 45.0
"""Scale of logits without text, over r times the variance of an image around an estimated class mean."""


@dataclass(frozen=True)
class Head:
    """logits = logit_scale x . text_features + bias: what a prompt file holds for linear scores."""

    text_features: Float64[Tensor, "c d"]
    """Weights; unit-norm where the head is `unit_norm`."""
    logit_scale: float
    bias: Float64[Tensor, " c"] | None = None
    """In logits."""

    def logits(self, image_features: Float[Tensor, "n d"]) -> Float64[Tensor, "n c"]:
        """Score images against all classes; a softmax over them is calibrated."""
        scores = self.logit_scale * (image_features.double() @ self.text_features.T)
        return scores if self.bias is None else scores + self.bias

    def unit_norm(self, metric: Metric, shared: SharedMean) -> Head:
        """Return a head of unit-norm embeddings alone with about the same scores: what a text tower can be asked for.

        The bias rides on a direction in which every image is about 1. Then all rows are divided by the length of
        the longest, and what the others lack is put into the direction that images use least.
        """
        offsets = torch.zeros(len(self.text_features), dtype=torch.float64) if self.bias is None else self.bias
        place = metric.mean + metric.lift(shared.value)
        carrier = metric.constant / (metric.constant @ place)
        rows = self.text_features + (offsets - offsets.mean())[:, None] / self.logit_scale * carrier
        rows = rows - (rows @ metric.unused)[:, None] * metric.unused
        longest = float(rows.norm(dim=1).max())
        rows = rows / longest
        lacking = (1 - rows.square().sum(dim=1)).clamp(min=0).sqrt()
        return Head(rows + lacking[:, None] * metric.unused, self.logit_scale * longest)


def make_head(
    metric: Metric,
    shared: SharedMean,
    posterior: ClassPosterior,
    text_features: Float[Tensor, "c d"] | None,
    logit_scale: float,
    precision: Float64[Tensor, "r r"] | None = None,
) -> Head:
    """Turn the estimates into a classifier.

    With h_c = t_c + dhat_c, x0 the task's mean and f_c = (mean |h|^2 / |h_c|^2)^((1 - ignorance) / 2):

        score_c(x) = f_c [kappa (x - x0) . e~_c + (A^T (x - m0) - g) . dhat_c] + ignorance kappa x0 . e~_c

    With a precision P, dhat_c is P h_c - t_c here, and |h|^2 is h . P h.

    which over kappa is in units of a cosine.
    A multiple of the mean text feature is added to all weights alike, which changes no decision and makes the head
    without information the text features themselves.

    Args:
        metric: public.
        shared: the task's mean.
        posterior: the classes' offsets.
        text_features: [c, d] of the hand template, unit norm; None where classes have no text.
        logit_scale: of the backbone; without text the scale is chosen by the variances.
        precision: P, of the task's own spread within classes; None where the public metric stands for it.

    Raises:
        UnfitError: a text prior with a metric that no public text was fitted to: measured to be unsafe.
    """
    if precision is None:
        precision = torch.eye(metric.rank, dtype=torch.float64)
    if text_features is None:
        return _head_without_text(metric, shared, posterior, precision)
    kappa = check_text_prior(metric)
    texts, ignorance = text_features.double(), posterior.ignorance
    offsets = texts - texts.mean(dim=0)  # e~
    means = kappa * offsets @ metric.inverse + posterior.estimate  # h
    pulled = posterior.estimate + means @ (precision - torch.eye(metric.rank, dtype=torch.float64))  # P h - t
    factors = _factors(means, precision, ignorance)
    weights = offsets + pulled @ metric.directions.T / kappa
    place = metric.mean + metric.lift(shared.value)  # x0
    of_text = offsets @ place
    bias = -factors * (of_text + _origin(metric, shared, pulled) / kappa) + ignorance * of_text
    return Head(factors[:, None] * weights + texts.mean(dim=0), logit_scale, logit_scale * bias)


def check_text_prior(metric: Metric) -> float:
    """Return kappa of a metric; UnfitError where no public text was fitted to it, which was measured to be unsafe."""
    if metric.kappa is None:
        raise UnfitError(
            "This metric was made without class texts, so how far to trust text features is unknown, and guessing was "
            "measured to fall below zero-shot. Make the metric with the texts of its public classes, or run without a "
            'text prior: method.text_prior = false (with method.form = "head" or "embeddings").'
        )
    return metric.kappa


def _head_without_text(
    metric: Metric, shared: SharedMean, posterior: ClassPosterior, precision: Float64[Tensor, "r r"]
) -> Head:
    """Score centered coordinates by the classes' own, made equally long; without information all scores are equal."""
    pulled = posterior.estimate @ precision
    factors = _factors(posterior.estimate, precision, ignorance=0.0)
    scale = LOGITS_WITHOUT_TEXT / metric.rank / (float(metric.within.mean()) + posterior.variance)
    weights = factors[:, None] * pulled @ metric.directions.T
    length = float(weights.norm(dim=1).mean()) or 1.0
    return Head(weights / length, scale * length, -scale * factors * _origin(metric, shared, pulled))


def _origin(metric: Metric, shared: SharedMean, pulled: Float64[Tensor, "c r"]) -> Float64[Tensor, " c"]:
    """Return the scores (A^T m0 + g) . dhat_c of the point that images are measured from."""
    return pulled @ (metric.directions.T @ metric.mean + shared.value)


def _factors(
    class_means: Float64[Tensor, "c r"], precision: Float64[Tensor, "r r"], ignorance: float
) -> Float64[Tensor, " c"]:
    """Return f_c, which makes all classes' means equally long as far as they are known."""
    squares = (class_means * (class_means @ precision)).sum(dim=1)
    return (squares.mean() / squares.clamp(min=1e-9)) ** ((1 - ignorance) / 2)


def prompt_embeddings(
    metric: Metric, shared: SharedMean, posterior: ClassPosterior, text_features: Float[Tensor, "c d"], head: Head
) -> Float64[Tensor, "c d"]:
    """Return unit-norm embeddings [c, d] to which contexts are fitted: half classifier, half class mean.

    The head's own weights lie where few prompts reach, since they weigh directions that images hardly use; estimated
    class means, in which the text feature is as long as text explains of a mean, lie near texts and score less well.
    """
    texts = text_features.double()
    offsets = texts - texts.mean(dim=0)
    assert metric.kappa is not None, "heads with text have one"
    explained = metric.kappa * metric.texts(texts) @ metric.inverse.T
    share = float((explained * offsets).sum() / offsets.square().sum())
    means = texts + posterior.estimate @ metric.inverse.T / share
    return F.normalize(means + head.unit_norm(metric, shared).text_features, dim=1)


def cosine_head(embeddings: Float[Tensor, "c d"], logit_scale: float) -> Head:
    """Return the head of text features alone."""
    return Head(F.normalize(embeddings.double(), dim=1), logit_scale)
