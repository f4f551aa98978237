"""Learned contexts for embeddings: prompts whose text features point where the statistics say. No privacy cost."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hushprompt import checks
from hushprompt.prompts.prompt_model import PromptModel


class FittedContext(NamedTuple):
    """A context and what it reached."""

    context: Float[Tensor, "*c t e"]
    cosines: Float[Tensor, " c"]
    """Between each class's text feature and its embedding; 1 is a perfect fit."""


def template_words(model: PromptModel) -> Float[Tensor, "t e"]:
    """Return the embedded words that stand before the class name in the backbone's hand template."""
    return model.words(model.backbone.template.partition("{}")[0], "end")


def fit_class_contexts(
    model: PromptModel, embeddings: Float[Tensor, "c d"], num_steps: int = 40, learning_rate: float = 0.05
) -> FittedContext:
    """Fit one context a class [c, t, e] to unit-norm embeddings, from the hand template's words."""
    start = template_words(model).expand(model.num_classes, -1, -1)
    return fit_context(model, embeddings, start, num_steps, learning_rate)


def fit_shared_context(
    model: PromptModel, embeddings: Float[Tensor, "c d"], num_steps: int = 150, learning_rate: float = 0.02
) -> FittedContext:
    """Fit one context [t, e] for all classes to unit-norm embeddings, from the hand template's words.

    It cannot reach them all: use it where a method's prompt is shared by classes.
    """
    return fit_context(model, embeddings, template_words(model), num_steps, learning_rate)


def fit_context(
    model: PromptModel,
    embeddings: Float[Tensor, "c d"],
    start: Float[Tensor, "*c t e"],
    num_steps: int,
    learning_rate: float,
) -> FittedContext:
    """Minimize the sum over classes of 1 - cosine(text feature, embedding) by Adam.

    Args:
        model: the frozen text tower and the class names.
        embeddings: [c, d] unit norm.
        start: [t, e] for all classes, or [c, t, e] with one for each.
        num_steps: Adam's steps, at least 1.
        learning_rate: in embedding units.

    Raises:
        ConfigError: a setting is out of range, or a prompt does not fit the model's window.
    """
    checks.positive(num_steps=num_steps, learning_rate=learning_rate)
    model.check_context(start.shape[-2])
    context = start.detach().clone().requires_grad_()
    target = F.normalize(embeddings.to(context), dim=1)
    optimizer = torch.optim.Adam([context], lr=learning_rate)
    with torch.enable_grad():
        for _ in range(num_steps):
            optimizer.zero_grad()
            (1 - (model.text_features(context) * target).sum(dim=1)).sum().backward()
            optimizer.step()
    fitted = context.detach()
    with torch.no_grad():
        return FittedContext(fitted, (model.text_features(fitted) * target).sum(dim=1))
