import pytest
import torch

from hushprompt.errors import ConfigError
from hushprompt.methods.optimizer import Optimizer


def trained(ours, theirs_class, **settings):
    start = torch.tensor([1.0, -2.0, 0.5])
    leaf = start.clone().requires_grad_()
    theirs = theirs_class([leaf], **settings)
    value, state = start, ours.init(start)
    for step in range(5):
        grad = torch.tensor([0.3, -0.1, 2.0]) * (step - 1.5)
        leaf.grad = grad.clone()
        theirs.step()
        value, state = ours.step(value, grad, state)
    return value, leaf.detach()


def test_sgd_is_torchs():
    ours = Optimizer(name="sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.01)
    value, expected = trained(ours, torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01)
    torch.testing.assert_close(value, expected)


def test_adam_is_torchs():
    ours = Optimizer(name="adam", learning_rate=0.1, momentum=0.9, second_moment_decay=0.99, weight_decay=0.01)
    value, expected = trained(ours, torch.optim.Adam, lr=0.1, betas=(0.9, 0.99), weight_decay=0.01)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_a_step_leaves_its_arguments_alone():
    optimizer, value = Optimizer(), torch.ones(2)
    state = optimizer.init(value)
    optimizer.step(value, torch.ones(2), state)
    assert torch.equal(value, torch.ones(2))
    assert torch.equal(state.first, torch.zeros(2))


@pytest.mark.parametrize(
    "settings", [{"learning_rate": 0.0}, {"momentum": 1.0}, {"weight_decay": -1.0}, {"second_moment_decay": 1.0}]
)
def test_a_useless_setting_is_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Optimizer(**settings)
