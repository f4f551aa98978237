"""Exact gradients, one per example, of a loss that sees several contexts through their text features.

`gradients.py` is for one context and the cosine. Here a method says how the text features of its contexts and one
image become logits; the rest is the same: dL_x/dT_j is cheap and different for each example, and each context has one
Jacobian that all examples share.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt.prompts.gradients import examples_per_pass
from hushprompt.prompts.prompt_model import NamePosition, PromptModel

TextFeatures = tuple[Float[Tensor, "c d"], ...]
"""One for each context."""
LogitsFn = Callable[[TextFeatures, Tensor], Tensor]
"""From text features and one image's features [*m, d] to logits [c]; differentiable, also under torch.vmap."""


def gradients_in_contexts(
    model: PromptModel,
    contexts: tuple[Float[Tensor, "..."], ...],
    logits_fn: LogitsFn,
    image_features: Float[Tensor, "b *m d"],
    labels: Int[Tensor, " b"],
    name_position: NamePosition = "end",
) -> tuple[tuple[Float[Tensor, "b ..."], ...], Float[Tensor, " b"]]:
    """Return each example's cross-entropy gradient in every context, and its loss.

    Args:
        model: frozen backbone and class names.
        contexts: each [t, e] or [c, t, e], where the gradients are taken.
        logits_fn: how the method scores one image; sees no other image, so that a row is one example's own.
        image_features: [b, d], or what else the method keeps of an image; b may be 0.
        labels: [b].
        name_position: where the class name stands.

    Returns:
        One [b, *context] for each context, and [b] losses, none of them private.
    """
    if len(labels) == 0:
        return tuple(context.new_zeros(0, *context.shape) for context in contexts), image_features.new_zeros(0)
    passes = [model.text_pass(context, name_position) for context in contexts]

    def loss(features: TextFeatures, image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(logits_fn(features, image), label)

    cotangents_of = torch.func.vmap(torch.func.grad_and_value(loss), in_dims=(None, 0, 0))
    fixed = tuple(each.features for each in passes)
    chunk = min(examples_per_pass(model, context, name_position) for context in contexts)
    rows: list[tuple[Tensor, ...]] = []
    losses: list[Tensor] = []
    for images, targets in zip(image_features.split(chunk), labels.split(chunk), strict=True):
        cotangents, values = cotangents_of(fixed, images, targets)
        rows.append(
            tuple(each.pull_back_matrices(cotangent) for each, cotangent in zip(passes, cotangents, strict=True))
        )
        losses.append(values)
    return tuple(torch.cat(parts) for parts in zip(*rows, strict=True)), torch.cat(losses)
