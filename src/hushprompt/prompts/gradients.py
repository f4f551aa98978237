"""Exact gradients of the loss in the context, one per example.

The text features are the same for all examples of a batch, so one forward pass serves them all: the loss of example x
depends on the context only through them, dL_x/dT = logit_scale (softmax_x - onehot_x) f_x^T, and the per-example
gradients are the products of these [c, d] matrices with one Jacobian.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt.prompts.prompt_model import NamePosition, PromptModel

FLOATS_PER_TOKEN = 32
"""Numbers, in token widths, that a backward pass holds at once for each token and example: the hidden layer of an MLP
is four widths, attention scores of a packed sequence about as much, and several such arrays live at the same time.
Measured with CLIP ViT-B/16, packed: about 20."""


def per_example_gradients(
    model: PromptModel,
    context: Float[Tensor, "*c t e"],
    image_features: Float[Tensor, "b d"],
    labels: Int[Tensor, " b"],
    name_position: NamePosition = "end",
) -> tuple[Float[Tensor, "b *c t e"], Float[Tensor, " b"]]:
    """Return each example's cross-entropy gradient in the context, and its loss.

    Guarantee: row x is a function of the context and of example x alone, up to rounding.

    Args:
        model: frozen backbone and class names.
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
    residuals = logits.softmax(dim=1) - F.one_hot(labels, model.num_classes)  # [b, c]
    chunk = examples_per_pass(model, context, name_position)
    rows = [
        text_pass.pull_back(model.logit_scale * weights, features)
        for weights, features in zip(residuals.split(chunk), image_features.split(chunk), strict=True)
    ]
    return torch.cat(rows), losses


def examples_per_pass(model: PromptModel, context: Float[Tensor, "*c t e"], name_position: NamePosition = "end") -> int:
    """Return how many examples one backward pass may take at most within `model.memory_mb`; at least 1.

    An example takes tokens x token width x `FLOATS_PER_TOKEN` x 4 bytes. The number of layers does not matter: what a
    layer's backward pass makes is let go with the next one, and the forward pass is there once for all examples.
    """
    if model.memory_mb is None:
        return sys.maxsize
    return max(1, model.memory_mb * 2**20 // bytes_per_example(model, context, name_position))


def bytes_per_example(model: PromptModel, context: Float[Tensor, "*c t e"], name_position: NamePosition = "end") -> int:
    """Return what one example's backward pass takes."""
    return 4 * FLOATS_PER_TOKEN * model.num_tokens(context, name_position) * model.token_width
