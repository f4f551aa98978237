import numpy as np
import pytest
import torch

from helpers.reference import slow_gradients
from hushprompt.methods.local_only import LocalOnly
from hushprompt.privacy.config import Channel
from hushprompt.prompts.optimizer import Optimizer

SGD = Optimizer(learning_rate=0.1, momentum=0.0)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("clip_norm", [0.05, 100.0])
@pytest.mark.parametrize("layout", [{}, {"is_class_specific": True, "name_position": "middle"}])
def test_a_step_without_noise_is_plain_descent_on_the_clients_own_examples(
    model, batch, make_mechanism, clip_norm, layout
):
    method = LocalOnly(num_ctx=4, optimizer=SGD, **layout)
    shared, personal = method.init(model, rng())
    mechanism = make_mechanism(method.channels, Channel.LOCAL, noise=0.0, clip_norm=clip_norm, count=10.0)
    upload, stepped, _ = method.client_step(model, shared, personal, batch, mechanism, rng(1))
    total = torch.zeros_like(personal.context)
    for grad in slow_gradients(model, personal.context, batch, method.name_position):
        total += grad * min(1.0, clip_norm / float(grad.norm()))
    torch.testing.assert_close(stepped.context, personal.context - 0.1 * total / 10, rtol=1e-4, atol=1e-6)
    assert upload.shared_grad is None


def test_nothing_is_published_but_the_clients_own_prompt(model):
    method = LocalOnly(num_ctx=4)
    shared, personal = method.init(model, rng())
    assert method.public_file(model, shared) is None
    assert torch.equal(method.personal_file(model, shared, personal).tensors["context"], personal.context)
