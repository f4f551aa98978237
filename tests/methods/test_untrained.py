"""The two rows that learn nothing, against what they must be."""

import numpy as np
import torch

from hushprompt.methods.random_prompt import RandomPrompt
from hushprompt.methods.zero_shot import ZeroShot


def test_zero_shot_is_the_templates_tokens_before_each_name(model, batch):
    method, backbone = ZeroShot(), model.backbone
    logits = method.logits(model, *method.init(model, np.random.default_rng(0)), batch.image_features)
    context = backbone.embed(torch.tensor(backbone.tokenize(backbone.template.removesuffix("{}"))))
    slow = backbone.encode_prompts(*model.plain_prompts(context))
    torch.testing.assert_close(logits, backbone.logit_scale * batch.image_features @ slow.T, rtol=1e-4, atol=1e-4)


def test_a_random_context_is_a_gaussian_draw_scored_like_any_context(model, batch):
    method = RandomPrompt(num_ctx=4, init_std=0.5)
    shared, personal = method.init(model, np.random.default_rng(0))
    draw = np.random.default_rng(0).normal(0.0, 0.5, size=(4, model.token_width)).astype(np.float32)
    assert torch.equal(shared.context, torch.from_numpy(draw))
    slow = model.backbone.encode_prompts(*model.plain_prompts(shared.context))
    logits = method.logits(model, shared, personal, batch.image_features)
    torch.testing.assert_close(logits, model.logits(batch.image_features, slow), rtol=1e-4, atol=1e-4)
