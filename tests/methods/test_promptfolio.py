import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hushprompt.errors import ConfigError
from hushprompt.methods.local_only import LocalOnly
from hushprompt.methods.promptfl import PromptFL
from hushprompt.methods.promptfolio import PromptFolio
from hushprompt.privacy.config import Channel
from hushprompt.prompts.optimizer import Optimizer

SGD = Optimizer(learning_rate=0.1, momentum=0.0)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("clip_norm", [0.05, 100.0])
@pytest.mark.parametrize("theta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("layout", [{}, {"is_class_specific": True, "name_position": "middle"}])
def test_a_step_without_noise_is_the_papers_step_by_plain_autograd(
    model, batch, make_mechanism, clip_norm, theta, layout
):
    method = PromptFolio(num_ctx=4, theta=theta, global_optimizer=SGD, local_optimizer=SGD, **layout)
    shared, personal = method.init(model, rng())
    mechanism = make_mechanism(method.channels, Channel.LOCAL, noise=0.0, clip_norm=clip_norm, count=10.0)
    upload, stepped, _ = method.client_step(model, shared, personal, batch, mechanism, rng(1))

    leaves = [state.context.clone().requires_grad_() for state in (shared, personal)]
    sums = [torch.zeros_like(leaf) for leaf in leaves]
    for image, label in zip(batch.image_features, batch.labels, strict=True):
        features = [model.backbone.encode_prompts(*model.plain_prompts(p, method.name_position)) for p in leaves]
        mixed = (1 - theta) * features[0] + theta * features[1]
        loss = F.cross_entropy(model.logit_scale * image[None] @ mixed.T, label[None])
        for total, grad in zip(sums, torch.autograd.grad(loss, leaves), strict=True):
            total += grad * min(1.0, clip_norm / max(float(grad.norm()), 1e-30))
    torch.testing.assert_close(upload.shared_grad.value, sums[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(stepped.context, personal.context - 0.1 * sums[1] / 10, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(method.server_step(shared, sums[0]).context, shared.context - 0.1 * sums[0])


def test_the_ends_of_theta_are_promptfl_and_local_only(model, batch, make_mechanism):
    allowed = Channel.LOCAL
    only_global, only_local = (PromptFolio(num_ctx=4, theta=theta, local_optimizer=SGD) for theta in (0.0, 1.0))
    shared, personal = only_global.init(model, rng())
    mechanism = make_mechanism(only_global.channels, allowed, noise=0.0)
    upload, _, _ = only_global.client_step(model, shared, personal, batch, mechanism, rng())
    promptfl = PromptFL(num_ctx=4)
    mechanism = make_mechanism(promptfl.channels, allowed, noise=0.0)
    expected, _, _ = promptfl.client_step(model, *promptfl.init(model, rng()), batch, mechanism, rng())
    torch.testing.assert_close(upload.shared_grad.value, expected.shared_grad.value)
    images = batch.image_features
    torch.testing.assert_close(
        only_global.logits(model, shared, personal, images), model.logits(images, model.text_features(shared.context))
    )
    local_only = LocalOnly(num_ctx=4, optimizer=SGD)
    mechanism = make_mechanism(local_only.channels, allowed, noise=0.0)
    _, expected, _ = local_only.client_step(model, local_only.init(model, rng())[0], personal, batch, mechanism, rng())
    mechanism = make_mechanism(only_local.channels, allowed, noise=0.0)
    _, stepped, _ = only_local.client_step(model, shared, personal, batch, mechanism, rng())
    torch.testing.assert_close(stepped.context, expected.context)


def test_the_mixture_of_unit_features_is_not_normalized_again(model, batch):
    method = PromptFolio(num_ctx=4, theta=0.5, init_std=1.0)
    shared, personal = method.init(model, rng())
    features = [model.text_features(state.context) for state in (shared, personal)]
    mixed = 0.5 * features[0] + 0.5 * features[1]
    assert float(mixed.norm(dim=1).max()) < 0.99
    logits = method.logits(model, shared, personal, batch.image_features)
    torch.testing.assert_close(logits, model.logit_scale * batch.image_features @ mixed.T)


def test_a_clients_file_says_how_to_use_the_pair(model, batch):
    method = PromptFolio(num_ctx=4, theta=0.3)
    shared, personal = method.init(model, rng())
    published = method.personal_file(model, shared, personal)
    assert "once with each context" in published.prompt
    assert "0.7 x global + 0.3 x local" in published.prompt
    of_global, of_local = (model.text_features(published.tensors[f"{which}_context"]) for which in ("global", "local"))
    expected = model.logits(batch.image_features, 0.7 * of_global + 0.3 * of_local)
    torch.testing.assert_close(method.logits(model, shared, personal, batch.image_features), expected)


def test_a_share_out_of_range_is_refused():
    with pytest.raises(ConfigError, match=r"theta must lie in \[0, 1\], got 1.5"):
        PromptFolio(theta=1.5)
