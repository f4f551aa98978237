import numpy as np
import pytest
import torch

from hushprompt.audits import shadow_mlp as module
from hushprompt.audits.metrics import auc
from hushprompt.audits.shadow_mlp import shadow_mlp


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "NUM_STEPS", 120)


def world(gap, num_models=12, per_class=25, seed=0):
    draws = np.random.default_rng(seed)
    labels = np.repeat([0, 1], per_class)
    is_in = draws.random((num_models, len(labels))) < 0.5
    logits = 0.3 * draws.standard_normal((num_models, len(labels), 3))
    logits[:, np.arange(len(labels)), labels] += 0.5 + gap * is_in
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)), labels, is_in


def attacked(gap):
    log_probs, labels, is_in = world(gap)
    return auc(shadow_mlp(log_probs, labels, is_in, np.random.default_rng(1)).ravel(), is_in.ravel())


def test_it_finds_members_where_they_show_and_nothing_where_they_do_not():
    assert attacked(2.0) > 0.95
    assert abs(attacked(0.0) - 0.5) < 0.06


def test_the_same_stream_gives_the_same_scores_and_no_network_has_seen_the_model_it_attacks():
    log_probs, labels, is_in = world(1.0)
    first, second = (shadow_mlp(log_probs, labels, is_in, np.random.default_rng(2)) for _ in range(2))
    assert np.array_equal(first, second)
    others = is_in.copy()
    others[0] = ~others[0]  # the truth about model 0 trains only the networks that attack odd models
    changed = shadow_mlp(log_probs, labels, others, np.random.default_rng(2))
    assert np.array_equal(first[0], changed[0])
    assert not np.array_equal(first[1], changed[1])


def test_its_gradient_is_autograds():
    draws = np.random.default_rng(3)
    network = module._start(5, draws)
    inputs, is_in = draws.random((7, 5)), draws.random(7) < 0.5
    leaves = [
        torch.from_numpy(value).requires_grad_()
        for value in (network.first, network.first_bias, network.second, network.second_bias)
    ]
    outputs = (torch.from_numpy(inputs) @ leaves[0] + leaves[1]).relu() @ leaves[2] + leaves[3]
    torch.nn.functional.cross_entropy(outputs.sigmoid(), torch.from_numpy(is_in).long()).backward()
    one_hot = np.stack([~is_in, is_in], axis=1).astype(float)
    for found, leaf in zip(module._gradients(network, inputs, one_hot), leaves, strict=True):
        np.testing.assert_allclose(found, leaf.grad.numpy(), atol=1e-12)
