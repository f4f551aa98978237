"""Several prompts matched to the patches of an image: logits, and each example's exact gradient in every context.

Source: Li et al. 2024 (arXiv:2403.00041), section 4. The logit of class y is logit_scale sum_mn T_mn <f_m, t_n>, with
f_m the image's patches, t_n the text features of y under prompt n, and T the transport plan of y's costs
1 - <f_m, t_n>. The plan counts as a constant: no gradient passes through it. A logit is then linear in the text
features, logit_scale sum_n <a_n, t_n> with a_n = sum_m T_mn f_m, so the gradient of example x's loss in the text
features of prompt n is logit_scale (softmax_x - onehot_x) a_n. Each context's own Jacobian, which all examples share,
pulls it back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hushprompt.backbones.prompts import NamePosition, PromptModel
from hushprompt.methods.base import Batch
from hushprompt.methods.gradients import examples_per_pass
from hushprompt.methods.transport import Transport

ARRAYS_PER_PLAN = 8
"""Arrays of a cost matrix's size that live at once while plans are made."""
PullBack = Callable[[Float[Tensor, "b c d"]], Float[Tensor, "b *c t e"]]
"""From gradients in text features to gradients in the context, one per example."""


def aligned_logits(
    model: PromptModel,
    text_features: Float[Tensor, "p c d"],
    patches: Float[Tensor, "n m d"],
    transport: Transport,
) -> Float[Tensor, "n c"]:
    """Score images against all classes, as many at a time as `model.memory_mb` allows.

    Args:
        model: frozen backbone and class names.
        text_features: [p, c, d] one set for each prompt.
        patches: [n, m, d] unit-norm features of each image's patches.
        transport: how patches and prompts are matched.
    """
    chunk = images_per_pass(model, len(text_features), patches.shape[1])
    rows = [_logits(model, text_features, aligned(text_features, p, transport)) for p in patches.split(chunk)]
    return torch.cat(rows)


def aligned(
    text_features: Float[Tensor, "p c d"], patches: Float[Tensor, "b m d"], transport: Transport
) -> Float[Tensor, "b p c d"]:
    """Give what each prompt of each class gets of an image: its patches, weighted by the transport plan."""
    cosines = torch.einsum("bmd,pcd->bcmp", patches, text_features)
    plan = transport.plan(1 - cosines)
    return torch.einsum("bcmp,bmd->bpcd", plan, patches)


def aligned_gradients(
    model: PromptModel,
    contexts: Sequence[Float[Tensor, "*c t e"]],
    batch: Batch,
    transport: Transport,
    name_position: NamePosition = "end",
) -> tuple[list[Float[Tensor, "b *c t e"]], Float[Tensor, " b"]]:
    """Give each example's cross-entropy gradient in every context, and its loss.

    Guarantee: row x of every result depends on example x and the contexts alone.

    Args:
        model: frozen backbone and class names.
        contexts: one [t, e] or [c, t, e] for each prompt.
        batch: b examples, [b, m, d] patches each; b may be 0.
        transport: how patches and prompts are matched.
        name_position: where the class name stands.

    Returns:
        For each context [b, *c, t, e] gradients, and [b] losses; none of them private.
    """
    if len(batch.labels) == 0:
        return [context.new_zeros(0, *context.shape) for context in contexts], contexts[0].new_zeros(0)
    encoded = [text_features_and_pull_back(model, context, name_position) for context in contexts]
    text_features = torch.stack([features for features, _ in encoded])  # [p, c, d]
    chunk = min(
        images_per_pass(model, len(contexts), batch.image_features.shape[1]),
        *(examples_per_pass(model, context, name_position) for context in contexts),
    )
    grads: list[list[Tensor]] = [[] for _ in contexts]
    losses: list[Tensor] = []
    for patches, labels in zip(batch.image_features.split(chunk), batch.labels.split(chunk), strict=True):
        parts = aligned(text_features, patches, transport)  # [b, p, c, d]
        logits = _logits(model, text_features, parts)
        residuals = logits.softmax(dim=1) - F.one_hot(labels, model.num_classes)  # [b, c]
        losses.append(F.cross_entropy(logits, labels, reduction="none"))
        for index, (_, pull_back) in enumerate(encoded):
            grads[index].append(pull_back(model.logit_scale * residuals[..., None] * parts[:, index]))
    return [torch.cat(rows) for rows in grads], torch.cat(losses)


def text_features_and_pull_back(
    model: PromptModel, context: Float[Tensor, "*c t e"], name_position: NamePosition = "end"
) -> tuple[Float[Tensor, "c d"], PullBack]:
    """Encode the prompts of all classes once, and give the way back from their features to the context."""
    leaf = context.detach().requires_grad_()
    with torch.enable_grad():
        text_features = model.text_features(leaf, name_position)

    def pull_back_one(cotangent: Float[Tensor, "c d"]) -> Float[Tensor, "*c t e"]:
        return torch.autograd.grad(text_features, leaf, cotangent, retain_graph=True)[0]

    return text_features.detach(), torch.vmap(pull_back_one)


def images_per_pass(model: PromptModel, num_prompts: int, num_patches: int) -> int:
    """Give how many images may be matched at once within `model.memory_mb`; at least 1."""
    if model.memory_mb is None:
        return sys.maxsize
    width = ARRAYS_PER_PLAN * num_patches + 2 * model.backbone.feature_dim
    return max(1, model.memory_mb * 2**20 // (4 * model.num_classes * num_prompts * width))


def _logits(
    model: PromptModel, text_features: Float[Tensor, "p c d"], parts: Float[Tensor, "b p c d"]
) -> Float[Tensor, "b c"]:
    """Add up over the prompts what each one's part of the image says."""
    return model.logit_scale * torch.einsum("bpcd,pcd->bc", parts, text_features)
