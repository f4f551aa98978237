import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers.reference import slow_gradients
from hushprompt.errors import ConfigError
from hushprompt.methods.promptfl import PromptFL
from hushprompt.privacy.config import Channel
from hushprompt.prompts.optimizer import Optimizer

SGD = Optimizer(learning_rate=0.1, momentum=0.0)


def rng(seed=0):
    return np.random.default_rng(seed)


def local_round(method, model, batch, make_mechanism, shared, num_steps):
    """A client's own copy of the shared prompt through one round of local steps, without noise."""
    shared = method.begin_round(shared)
    _, personal = method.init(model, rng())
    for _ in range(num_steps):
        client, server = (make_mechanism(method.channels, allowed, noise=0.0, clip_norm=1e3) for allowed in Channel)
        upload, personal, _ = method.client_step(model, shared, personal, batch, client, rng())
        shared = method.server_step(shared, server.release(Channel.GLOBAL, upload.shared_grad).value)
    return shared


@pytest.mark.parametrize("clip_norm", [0.05, 100.0])
@pytest.mark.parametrize("layout", [{}, {"is_class_specific": True, "name_position": "middle"}])
def test_a_step_without_noise_is_plain_descent(model, batch, make_mechanism, clip_norm, layout):
    method = PromptFL(num_ctx=4, optimizer=SGD, proximal_weight=5.0, **layout)
    shared, personal = method.init(model, rng())
    mechanism = make_mechanism(method.channels, Channel.LOCAL, noise=0.0, clip_norm=clip_norm)
    upload, _, _ = method.client_step(model, shared, personal, batch, mechanism, rng())
    total = torch.zeros_like(shared.context)
    for grad in slow_gradients(model, shared.context, batch, method.name_position):
        total += grad * min(1.0, clip_norm / float(grad.norm()))
    torch.testing.assert_close(upload.shared_grad.value, total, rtol=1e-4, atol=1e-6)
    # The first step of a round stands on its anchor, where the pull is zero.
    torch.testing.assert_close(method.server_step(shared, total).context, shared.context - 0.1 * total)


@pytest.mark.parametrize("weight", [0.0, 0.5, 5.0])
def test_local_steps_descend_on_the_proximal_objective(model, batch, make_mechanism, weight):
    method = PromptFL(num_ctx=4, optimizer=SGD, proximal_weight=weight)
    shared, _ = method.init(model, rng())
    context = anchor = shared.context
    for _ in range(2):
        shared = local_round(method, model, batch, make_mechanism, shared, 4)
        for _ in range(4):
            leaf = context.clone().requires_grad_()
            features = model.backbone.encode_prompts(*model.plain_prompts(leaf))
            loss = F.cross_entropy(model.logits(batch.image_features, features), batch.labels)
            objective = loss + weight / 2 * (leaf - anchor).square().sum()
            context = context - 0.1 * torch.autograd.grad(objective, leaf)[0]
        torch.testing.assert_close(shared.context, context, rtol=1e-4, atol=1e-5)
        anchor = context


def test_the_pull_keeps_a_client_near_the_start_of_its_round(model, batch, make_mechanism):
    moved = []
    for weight in (0.0, 5.0):
        method = PromptFL(num_ctx=4, optimizer=SGD, proximal_weight=weight)
        start, _ = method.init(model, rng())
        end = local_round(method, model, batch, make_mechanism, start, 10)
        moved.append(float((end.context - start.context).norm()))
    assert moved[1] < 0.8 * moved[0]


def test_one_step_a_round_does_not_feel_the_weight(model, batch, make_mechanism):
    ends = []
    for weight in (0.0, 5.0):
        method = PromptFL(num_ctx=4, proximal_weight=weight)
        shared, _ = method.init(model, rng())
        for _ in range(3):
            shared = local_round(method, model, batch, make_mechanism, shared, 1)
        ends.append(shared.context)
    assert torch.equal(*ends)


def test_a_negative_weight_is_refused():
    with pytest.raises(ConfigError, match="proximal_weight must be >= 0, got -1"):
        PromptFL(proximal_weight=-1.0)
