"""Learned contexts that say what the statistics say: post-processing, without privacy cost.

A context of its own for each class can reach an embedding. One for all classes cannot reach them all, and is trained on
images that are drawn from the estimated classes: CoOp (Zhou et al. 2022, arXiv:2109.01134) on samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from hushprompt import checks
from hushprompt.prompts.layout import NamePosition
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.statistics.metric import Metric

IMAGES_A_CLASS = 10
"""Images of each class that are drawn for a step."""
CLASS_STEPS, SHARED_STEPS = 40, 100
"""Steps of Adam, where nobody asks for others."""
CLASS_RATE, SHARED_RATE = 0.05, 0.02
"""Learning rates of Adam, in embedding units."""


class EstimatedClasses(NamedTuple):
    """Where each class's images are expected to lie, in a metric."""

    metric: Metric
    means: Float64[Tensor, "c r"]
    """A^T (mean image - m0)."""
    variance: Float64[Tensor, " r"]
    """Of an image around the mean of its class, what is not known of that mean included."""

    def draw(self, num_each: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
        """Draw unit-norm image features, `num_each` of each class, class by class."""
        means = self.means.repeat_interleave(num_each, dim=0)
        noise = torch.randn(means.shape, generator=generator, dtype=means.dtype)
        rows = self.metric.mean + (means + noise * self.variance.sqrt()) @ self.metric.inverse.T
        return F.normalize(rows, dim=1).float()


def template_words(model: PromptModel) -> Float[Tensor, "t e"]:
    """Return the embedded words that stand before the class name in the backbone's hand template."""
    return model.words(model.backbone.template.partition("{}")[0], "end")


def fit_class_contexts(
    model: PromptModel,
    embeddings: Float[Tensor, "c d"],
    start: Float[Tensor, "c t e"] | None = None,
    num_steps: int | None = None,
    name_position: NamePosition = "end",
) -> Float[Tensor, "c t e"]:
    """Fit one context a class to an embedding, by Adam on the sum over classes of 1 - cosine(text feature, embedding).

    Args:
        model: the frozen text tower and the class names.
        embeddings: [c, d] unit norm.
        start: [c, t, e]; None: the hand template's words.
        num_steps: Adam's steps, at least 1; None: as many as measured to be enough.
        name_position: where the class name stands.

    Raises:
        ConfigError: a setting is out of range, or a prompt does not fit the model's window.
    """
    num_steps = CLASS_STEPS if num_steps is None else num_steps
    first = template_words(model).expand(model.num_classes, -1, -1) if start is None else start
    target = F.normalize(embeddings.to(first), dim=1)

    def loss(features: Float[Tensor, "c d"]) -> Float[Tensor, ""]:
        return (1 - (features * target).sum(dim=1)).sum()

    return _minimize(model, loss, first, num_steps, CLASS_RATE, name_position)


def fit_shared_context(
    model: PromptModel,
    classes: EstimatedClasses,
    start: Float[Tensor, "t e"] | None = None,
    num_steps: int | None = None,
    name_position: NamePosition = "end",
) -> Float[Tensor, "t e"]:
    """Fit one context for all classes, by Adam on the cross-entropy of images that are drawn anew for every step.

    Args:
        model: the frozen text tower and the class names.
        classes: what images are drawn from, with draws that are always the same.
        start: [t, e]; None: the hand template's words.
        num_steps: Adam's steps, at least 1; None: as many as measured to be enough.
        name_position: where the class name stands.

    Raises:
        ConfigError: a setting is out of range, or a prompt does not fit the model's window.
    """
    num_steps = SHARED_STEPS if num_steps is None else num_steps
    first = template_words(model) if start is None else start
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(model.num_classes, device=model.device).repeat_interleave(IMAGES_A_CLASS)

    def loss(features: Float[Tensor, "c d"]) -> Float[Tensor, ""]:
        images = classes.draw(IMAGES_A_CLASS, generator).to(model.device)
        return F.cross_entropy(model.logits(images, features), labels)

    return _minimize(model, loss, first, num_steps, SHARED_RATE, name_position)


def _minimize(
    model: PromptModel,
    loss: Callable[[Float[Tensor, "c d"]], Float[Tensor, ""]],
    start: Float[Tensor, "*c t e"],
    num_steps: int,
    learning_rate: float,
    name_position: NamePosition,
) -> Float[Tensor, "*c t e"]:
    """Minimize a function of the text features by Adam."""
    checks.positive(num_steps=num_steps)
    model.check_context(start.shape[-2], name_position)
    context = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([context], lr=learning_rate)
    with torch.enable_grad():
        for _ in range(num_steps):
            optimizer.zero_grad()
            loss(model.text_features(context, name_position)).backward()
            optimizer.step()
    return context.detach()
