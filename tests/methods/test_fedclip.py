import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hushprompt.methods.fedclip import FedCLIP, unpack
from hushprompt.privacy.config import Channel
from hushprompt.prompts.optimizer import Optimizer

SGD = Optimizer(learning_rate=0.1, momentum=0.0)


def rng(seed=0):
    return np.random.default_rng(seed)


def published_module(parameters, width):
    """The adapter as the authors' code builds it, of torch's own layers."""
    module = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width), nn.Softmax(dim=1))
    adapter = unpack(parameters, width)
    state = {"0.weight": adapter.hidden_weight, "0.bias": adapter.hidden_bias}
    module.load_state_dict({**state, "2.weight": adapter.attention_weight, "2.bias": adapter.attention_bias})
    return module


def slow_loss(model, module, feature, label):
    adapted = F.normalize(module(feature[None]) * feature[None], dim=1)
    return F.cross_entropy(model.logits(adapted, model.template_features), label[None])


@pytest.mark.parametrize("clip_norm", [0.05, 100.0])
def test_a_step_without_noise_is_the_published_modules_step_by_plain_autograd(model, batch, make_mechanism, clip_norm):
    method = FedCLIP(optimizer=SGD)
    shared, personal = method.init(model, rng())
    mechanism = make_mechanism(method.channels, Channel.LOCAL, clip_norm=clip_norm)
    upload, _, info = method.client_step(model, shared, personal, batch, mechanism, rng(1))
    module = published_module(shared.parameters, 6)
    total, losses = torch.zeros_like(shared.parameters), []
    for feature, label in zip(batch.image_features, batch.labels, strict=True):
        loss = slow_loss(model, module, feature, label)
        grad = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(module.parameters()))])
        total += grad * min(1.0, clip_norm / float(grad.norm()))
        losses.append(float(loss.detach()))
    torch.testing.assert_close(upload.shared_grad.value, total, rtol=1e-4, atol=1e-6)
    assert info.loss == pytest.approx(np.mean(losses), rel=1e-5)
    stepped = method.server_step(shared, total)
    torch.testing.assert_close(stepped.parameters, shared.parameters - 0.1 * total)


def test_it_starts_as_torchs_linear_layers_do(model):
    shared, _ = FedCLIP().init(model, rng())
    assert shared.parameters.shape == (2 * (6 * 6 + 6),)
    assert float(shared.parameters.abs().max()) <= 6**-0.5
    assert float(shared.parameters.std()) == pytest.approx((6 * 3) ** -0.5, rel=0.15)


def test_an_even_attention_is_the_zero_shot_row(model, batch):
    method = FedCLIP()
    shared, personal = method.init(model, rng())
    even = type(shared)(torch.zeros_like(shared.parameters), shared.optimizer)
    expected = model.logits(batch.image_features, model.template_features)
    torch.testing.assert_close(method.logits(model, even, personal, batch.image_features), expected)


def test_its_file_gives_the_logits_without_this_package(model, batch):
    method = FedCLIP()
    shared, personal = method.init(model, rng())
    published = method.public_file(model, shared)
    assert method.personal_file(model, shared, personal) is None
    w = published.tensors
    hidden = torch.tanh(batch.image_features @ w["hidden_weight"].T + w["hidden_bias"])
    attention = (hidden @ w["attention_weight"].T + w["attention_bias"]).softmax(dim=1)
    adapted = batch.image_features * attention
    adapted = adapted / adapted.norm(dim=1, keepdim=True)
    logits = model.logit_scale * adapted @ model.template_features.T
    torch.testing.assert_close(logits, method.logits(model, shared, personal, batch.image_features))
    assert "hand template 'a {}'" in published.prompt
