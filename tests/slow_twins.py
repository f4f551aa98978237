"""Slow and obvious twins of fast code, for several tests."""

import torch
import torch.nn.functional as F


def slow_gradients(model, context, batch, name_position="end"):
    """One example at a time: plain autograd through one padded sequence a class."""
    rows = []
    for feature, label in zip(batch.image_features, batch.labels, strict=True):
        leaf = context.clone().requires_grad_()
        text_features = model.backbone.encode_prompts(*model.plain_prompts(leaf, name_position))
        loss = F.cross_entropy(model.logits(feature[None], text_features), label[None])
        rows.append(torch.autograd.grad(loss, leaf)[0])
    return torch.stack(rows)
