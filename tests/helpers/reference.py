"""Slow and obvious twins of fast code, for several tests."""

import numpy as np
import torch
import torch.nn.functional as F

from hushprompt.methods.base import Batch
from hushprompt.models import packing
from hushprompt.prompts.gradients import per_example_gradients
from hushprompt.prompts.prompt_model import PromptModel


def slow_gradients(model, context, batch, name_position="end"):
    """One example at a time: plain autograd through one padded sequence a class."""
    rows = []
    for feature, label in zip(batch.image_features, batch.labels, strict=True):
        leaf = context.clone().requires_grad_()
        text_features = model.backbone.encode_prompts(*model.plain_prompts(leaf, name_position))
        loss = F.cross_entropy(model.logits(feature[None], text_features), label[None])
        rows.append(torch.autograd.grad(loss, leaf)[0])
    return torch.stack(rows)


def check_shared_prefix(backbone):
    """A shared prefix gives features, gradients and per-example gradients of one padded sequence a class."""
    model = PromptModel(backbone, ("cat", "zebra kiwi", "ox", "kiwi cat ox", "a cat"))
    rng = np.random.default_rng(1)
    context = 0.3 * torch.from_numpy(rng.normal(size=(3, model.token_width))).float()
    features = torch.from_numpy(rng.normal(size=(4, backbone.feature_dim))).float()
    batch = Batch(F.normalize(features, dim=1), torch.tensor([0, 1, 2, 1]))
    weights = torch.from_numpy(rng.normal(size=(model.num_classes, backbone.feature_dim))).float()
    leaf = context.clone().requires_grad_()
    slow = backbone.encode_prompts(*model.plain_prompts(leaf))
    (slow_grad,) = torch.autograd.grad((slow * weights).sum(), leaf)
    slow_rows = slow_gradients(model, context, batch)
    fast = model.text_features(leaf)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-5)
    (fast_grad,) = torch.autograd.grad((fast * weights).sum(), leaf)
    assert (fast_grad - slow_grad).norm() < 1e-5 * slow_grad.norm()
    fast_rows, _ = per_example_gradients(model, context, batch.image_features, batch.labels)
    for fast_row, slow_row in zip(fast_rows, slow_rows, strict=True):
        assert (fast_row - slow_row).norm() < 1e-5 * slow_row.norm()
    return model, context


def check_packing(backbone, monkeypatch):
    """The packed form, which a GPU takes, gives the same features as one padded sequence a class."""
    model, context = check_shared_prefix(backbone)
    slow, suffixes = backbone.encode_prompts(*model.plain_prompts(context)), model._layout.suffixes
    for max_tokens in (512, 12):  # one sequence, and several
        monkeypatch.setattr(packing, "MAX_TOKENS", max_tokens)
        tower = backbone.causal_tower
        outputs = packing.encode_packed(tower.run_packed, suffixes.prefix(context), suffixes.groups)
        fast = F.normalize(tower.head(outputs), dim=-1)[suffixes.class_order]
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-5)


def check_lower_precision(exact, lower, images):
    """A tower in bfloat16 gives float32 features and gradients, near those of the exact one."""
    names = ("cat", "zebra kiwi", "ox")
    models = [PromptModel(backbone, names) for backbone in (exact, lower)]
    assert exact.fingerprint != lower.fingerprint
    context = 0.3 * torch.randn(3, exact.token_width, generator=torch.Generator().manual_seed(0))
    seen = [model.backbone.encode_images(images) for model in models]
    batch = Batch(seen[0], torch.arange(len(images)) % len(names))
    grads = [per_example_gradients(model, context, batch.image_features, batch.labels)[0] for model in models]
    own = [model.text_features(context.expand(len(names), -1, -1)) for model in models]  # one sequence a class
    shared = [model.text_features(context) for model in models]
    for (first, second), tolerance in ((seen, 0.05), (shared, 0.05), (own, 0.05), (grads, 0.15)):
        assert second.dtype == torch.float32
        assert 0 < (first - second).norm() < tolerance * first.norm()
