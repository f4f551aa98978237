"""Exact gradients of the loss, one per example, in a context, or in several that a loss sees through their features.

The text features are the same for all examples of a batch, so one forward pass serves them all: the loss of example x
depends on a context only through its text features T. dL_x/dT is cheap, and the per-example gradients are the products
of these [c, d] matrices with one Jacobian.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt.prompts.layout import NamePosition

if TYPE_CHECKING:
    from hushprompt.prompts.prompt_model import PromptModel

FLOATS_PER_TOKEN = 32
"""Numbers, in token widths, that a backward pass holds at once for each token and example: the hidden layer of an MLP
is four widths, and several such arrays live at the same time. Measured with CLIP ViT-B/16: about 20."""
TextFeatures = tuple[Float[Tensor, "c d"], ...]
"""One for each context."""
LogitsFn = Callable[[TextFeatures, Tensor], Tensor]
"""From text features and one image's features [*m, d] to logits [c]; differentiable, also under torch.vmap."""


def per_example_gradients(
    model: PromptModel,
    context: Float[Tensor, "*c t e"],
    image_features: Float[Tensor, "b d"],
    labels: Int[Tensor, " b"],
    name_position: NamePosition = "end",
) -> tuple[Float[Tensor, "b *c t e"], Float[Tensor, " b"]]:
    """Return each example's cross-entropy gradient in the context, and its loss.

    dL_x/dT = logit_scale (softmax_x - onehot_x) f_x^T, with f_x the image's feature.
    Guarantee: row x is a function of the context and of example x alone, up to rounding.

    Args:
        model: frozen model and class names.
        context: [t, e], or [c, t, e] with one for each class, where the gradient is taken.
        image_features: [b, d] one for each example; b may be 0.
        labels: [b].
        name_position: where the class name stands.

    Returns:
        [b, t, e] or [b, c, t, e] gradients and [b] losses, neither of them private.
    """
    if len(labels) == 0:
        return context.new_zeros(0, *context.shape), context.new_zeros(0)
    text_pass = model.text_pass(context, name_position)
    logits = model.logits(image_features, text_pass.features)  # [b, c]
    losses = F.cross_entropy(logits, labels, reduction="none")
    weights = model.logit_scale * (logits.softmax(dim=1) - F.one_hot(labels, model.num_classes))  # [b, c]
    chunk = examples_per_pass(model, context, name_position)
    rows = [
        text_pass.pull_back(torch.einsum("bc,bd->bcd", some, features))
        for some, features in zip(weights.split(chunk), image_features.split(chunk), strict=True)
    ]
    return torch.cat(rows), losses


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
        model: frozen model and class names.
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
        rows.append(tuple(each.pull_back(cotangent) for each, cotangent in zip(passes, cotangents, strict=True)))
        losses.append(values)
    return tuple(torch.cat(parts) for parts in zip(*rows, strict=True)), torch.cat(losses)


def examples_per_pass(model: PromptModel, context: Float[Tensor, "*c t e"], name_position: NamePosition = "end") -> int:
    """Return how many examples one backward pass may take at most within `model.memory_mb`; at least 1.

    An example takes tokens x token width x `FLOATS_PER_TOKEN` x 4 bytes. The number of layers does not matter: what a
    layer's backward pass makes is let go with the next one, and the forward pass is there once for all examples.
    """
    if model.memory_mb is None:
        return sys.maxsize
    num_bytes = 4 * FLOATS_PER_TOKEN * model.num_tokens(context, name_position) * model.token_width
    return max(1, model.memory_mb * 2**20 // num_bytes)
