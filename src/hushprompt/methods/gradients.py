"""Exact gradients of the loss in the context, one per example.

The text features are the same for all examples of a batch, so one forward pass serves them all: the loss of example x
depends on the context only through them, dL_x/dT = logit_scale (softmax_x - onehot_x) f_x^T, and the per-example
gradients are the products of these [c, d] matrices with one Jacobian.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hushprompt.backbones.prompts import NamePosition, PromptModel
from hushprompt.methods.base import Batch

CHUNK = 64
"""Examples per backward pass: bounds memory, changes results by rounding alone."""


def per_example_gradients(
    model: PromptModel, context: Float[Tensor, "*c t e"], batch: Batch, name_position: NamePosition = "end"
) -> tuple[Float[Tensor, "b *c t e"], Float[Tensor, " b"]]:
    """Give each example's cross-entropy gradient in the context, and its loss.

    Args:
        model: frozen backbone and class names.
        context: [t, e], or [c, t, e] with one for each class, where the gradient is taken.
        batch: b examples; b may be 0.
        name_position: where the class name stands.

    Returns:
        [b, t, e] or [b, c, t, e] gradients and [b] losses, neither of them private.
    """
    if len(batch.labels) == 0:
        return context.new_zeros(0, *context.shape), context.new_zeros(0)
    leaf = context.detach().requires_grad_()
    with torch.enable_grad():
        text_features = model.text_features(leaf, name_position)
    logits = model.logits(batch.image_features, text_features.detach())  # [b, c]
    losses = F.cross_entropy(logits, batch.labels, reduction="none")
    residuals = logits.softmax(dim=1) - F.one_hot(batch.labels, model.num_classes)  # [b, c]

    def pull_back(cotangent: Float[Tensor, "c d"]) -> Float[Tensor, "*c t e"]:
        return torch.autograd.grad(text_features, leaf, cotangent, retain_graph=True)[0]

    rows: list[Tensor] = []
    for weights, features in zip(residuals.split(CHUNK), batch.image_features.split(CHUNK), strict=True):
        cotangents = model.logit_scale * torch.einsum("bc,bd->bcd", weights, features)
        rows.append(torch.vmap(pull_back)(cotangents))
    return torch.cat(rows), losses
