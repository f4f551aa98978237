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


def test_a_class_is_trained_as_if_it_were_alone():
    """A reference implementation: one network of two linear layers, one batch after the other."""
    draws = np.random.default_rng(3)
    inputs = [torch.from_numpy(draws.random((size, 5))) for size in (7, 11)]
    is_in = [torch.from_numpy(draws.random(len(each)) < 0.5) for each in inputs]
    together = module._fit(inputs, is_in, np.random.default_rng(4))
    rng = np.random.default_rng(4)
    for index, (mine, members) in enumerate(zip(inputs, is_in, strict=True)):
        start = module._start(5, rng)
        network = torch.nn.Sequential(
            torch.nn.Linear(5, module.HIDDEN), torch.nn.ReLU(), torch.nn.Linear(module.HIDDEN, 2)
        )
        network = network.double()
        with torch.no_grad():
            for parameter, value in zip(
                network.parameters(), (start[0].T, start[1][0], start[2].T, start[3][0]), strict=True
            ):
                parameter.copy_(value)
        optimizer = torch.optim.Adam(network.parameters(), lr=module.LEARNING_RATE)
        for _ in range(module.NUM_STEPS):
            batch = torch.from_numpy(rng.integers(len(members), size=module.BATCH))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(mine[batch]).sigmoid(), members[batch].long()).backward()
            optimizer.step()
        found = module._outputs([weights[index : index + 1] for weights in together], mine[None])[0]
        torch.testing.assert_close(found, network(mine).detach(), rtol=1e-8, atol=1e-8)
