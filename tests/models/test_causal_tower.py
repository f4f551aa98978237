"""A shared prefix gives what whole sequences give, one by one; real models' towers are tested with their models."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from helpers.reference import check_packing
from hushprompt.models.embedded import EmojiClip
from hushprompt.models.embedded_network import EmojiNetworkConfig, TextTower
from hushprompt.models.packing import encode_packed
from hushprompt.models.toy import Toy

CONFIG = EmojiNetworkConfig(dim=12, text_width=16, text_layers=3, text_heads=2, context_length=12, vocab_size=30)
SHAPES = [[(3, 1)], [(2, 1), (1, 2), (4, 4)], [(2, 3), (5, 2)], [(1, 3)]]


def make_tower(**fields):
    """A random tower in which no scale is 1 and no shift 0."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        tower = TextTower(dataclasses.replace(CONFIG, **fields))
        for parameter in tower.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return tower.requires_grad_(requires_grad=False)


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def one_by_one(tower, prefix, groups):
    """The slow reference: every sequence whole and alone, plain autograd."""
    rows = []
    for group in groups:
        for suffix in group:
            whole = torch.cat([prefix, suffix])[None]
            rows.append(tower(whole, torch.tensor([whole.shape[1] - 1])))
    return torch.cat(rows)


def exact(shapes):
    """Prefix and suffixes in double precision."""
    prefix = random(5, 16, dtype=torch.float64).requires_grad_()
    return prefix, [random(count, length, 16, seed=length, dtype=torch.float64) for count, length in shapes]


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("is_packed", [False, True])
def test_features_and_gradients_are_those_of_whole_sequences(shapes, num_layers, is_packed):
    tower = make_tower(text_layers=num_layers).double()
    prefix, groups = exact(shapes)
    causal, slow = tower.causal_tower(), one_by_one(tower, prefix, groups)
    packed = causal.head(encode_packed(causal.run_packed, prefix, groups))
    fast = packed if is_packed else causal.encode(prefix, groups)
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(causal.encode(prefix, groups), slow, rtol=1e-10, atol=1e-12)
    weights = random(*slow.shape, seed=9, dtype=torch.float64)
    got, expected = (torch.autograd.grad((f * weights).sum(), prefix)[0] for f in (fast, slow))
    assert (got - expected).norm() < 1e-10 * expected.norm()


def test_single_precision_is_as_good_as_whole_sequences():
    tower, groups = make_tower(), [random(3, 2, 16), random(2, 3, 16)]
    prefix, weights = random(5, 16).requires_grad_(), random(5, 12, seed=9)
    fast, slow = (
        torch.autograd.grad((fn(prefix, groups) * weights).sum(), prefix)[0]
        for fn in (tower.causal_tower().encode, lambda *given: one_by_one(tower, *given))
    )
    assert (fast - slow).norm() < 3e-6 * slow.norm()


def test_a_batch_of_backward_passes_is_one_after_the_other():
    prefix = random(5, 16).requires_grad_()
    features = make_tower().causal_tower().encode(prefix, [random(2, 1, 16), random(3, 2, 16)])

    def pull_back(cotangent):
        return torch.autograd.grad(features, prefix, cotangent, retain_graph=True)[0]

    cotangents = random(7, *features.shape)
    together = torch.vmap(pull_back)(cotangents)
    torch.testing.assert_close(together, torch.stack([pull_back(row) for row in cotangents]), rtol=1e-4, atol=1e-5)


def test_prefix_suffixes_and_weights_are_left_alone():
    tower, prefix, groups = make_tower(), random(5, 16).requires_grad_(), [random(2, 2, 16)]
    before = [tensor.detach().clone() for tensor in (prefix, *groups, *tower.parameters())]
    F.normalize(tower.causal_tower().encode(prefix, groups), dim=1).sum().backward()
    for tensor, old in zip((prefix, *groups, *tower.parameters()), before, strict=True):
        assert torch.equal(tensor, old)
    assert all(parameter.grad is None for parameter in tower.parameters())


@pytest.mark.parametrize("section", [Toy(), EmojiClip()], ids=["toy", "embedded"])
def test_a_causal_models_prompts_are_those_of_its_padded_loop(section, monkeypatch):
    check_packing(section.load(), monkeypatch)
