import dataclasses

import pytest
import torch
import torch.nn.functional as F

from hushprompt.models import emoji_block
from hushprompt.models.embedded_network import EmojiNetworkConfig, TextTower
from hushprompt.models.emoji_prefix import PrefixTower

CONFIG = EmojiNetworkConfig(dim=12, text_width=16, text_layers=3, text_heads=2, context_length=12, vocab_size=30)


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


def encode(tower, prefix, groups):
    return PrefixTower(tower).encode(prefix, groups)


def one_by_one(tower, prefix, groups):
    """The slow twin: every sequence whole and alone, plain autograd."""
    rows = []
    for group in groups:
        for suffix in group:
            whole = torch.cat([prefix, suffix])[None]
            rows.append(tower(whole, torch.tensor([whole.shape[1] - 1])))
    return F.normalize(torch.cat(rows), dim=1)


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("shapes", [[(3, 1)], [(2, 1), (1, 2), (4, 4)], [(2, 3), (5, 2)], [(1, 3)]])
def test_features_and_gradients_are_those_of_whole_sequences(shapes, num_layers):
    tower = make_tower(text_layers=num_layers).double()
    prefix = random(5, 16, dtype=torch.float64).requires_grad_()
    groups = [random(count, length, 16, seed=length, dtype=torch.float64) for count, length in shapes]
    fast, slow = encode(tower, prefix, groups), one_by_one(tower, prefix, groups)
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)
    weights = random(*slow.shape, seed=9, dtype=torch.float64)
    got, expected = (torch.autograd.grad((f * weights).sum(), prefix)[0] for f in (fast, slow))
    assert (got - expected).norm() < 1e-10 * expected.norm()


def test_single_precision_is_as_good_as_autograds():
    tower, groups = make_tower(), [random(3, 2, 16), random(2, 3, 16)]
    prefix = random(5, 16).requires_grad_()
    weights = random(5, 12, seed=9)
    fast, slow = (
        torch.autograd.grad((fn(tower, prefix, groups) * weights).sum(), prefix)[0] for fn in (encode, one_by_one)
    )
    assert (fast - slow).norm() < 3e-6 * slow.norm()


@pytest.mark.parametrize("rows", [2, 1000])
def test_a_batch_of_backward_passes_is_one_after_the_other(rows, monkeypatch):
    monkeypatch.setattr(emoji_block, "ROWS", rows)
    prefix = random(5, 16).requires_grad_()
    features = encode(make_tower(), prefix, [random(2, 1, 16), random(3, 2, 16)])

    def pull_back(cotangent):
        return torch.autograd.grad(features, prefix, cotangent, retain_graph=True)[0]

    cotangents = random(7, *features.shape)
    together = torch.vmap(pull_back)(cotangents)
    torch.testing.assert_close(together, torch.stack([pull_back(row) for row in cotangents]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("shapes", [[(3, 1)], [(2, 1), (1, 2), (4, 4)], [(2, 3), (5, 2)]])
@pytest.mark.parametrize("num_different_ends", [0, 1, None])
def test_weighted_directions_give_the_gradients_of_their_products(shapes, num_layers, num_different_ends):
    tower = make_tower(text_layers=num_layers).double()
    prefix = random(5, 16, dtype=torch.float64).requires_grad_()
    groups = [random(count, length, 16, seed=length, dtype=torch.float64) for count, length in shapes]
    if num_different_ends is not None:
        for group in groups:
            group[num_different_ends:, -1] = random(16, seed=42, dtype=torch.float64)
    slow = one_by_one(tower, prefix, groups)
    weights, directions = random(6, len(slow), dtype=torch.float64), random(6, slow.shape[1], dtype=torch.float64)
    tower_pass = PrefixTower(tower).read(prefix, groups)
    torch.testing.assert_close(tower_pass.features, slow, rtol=1e-10, atol=1e-12)
    for row, weight, direction in zip(tower_pass.pull_back(weights, directions), weights, directions, strict=True):
        (expected,) = torch.autograd.grad(slow, prefix, torch.outer(weight, direction), retain_graph=True)
        assert (row - expected).norm() < 1e-10 * expected.norm()


def test_what_leaves_a_pass_may_be_differentiated_and_written_over():
    tower_pass = PrefixTower(make_tower()).read(random(5, 16), [random(2, 3, 16)])
    rows = tower_pass.pull_back(random(4, 2), random(4, 12))
    for values in (tower_pass.features, rows):
        factor = torch.ones((), requires_grad=True)
        (values * factor).sum().backward()
        torch.testing.assert_close(factor.grad, values.sum())
        values.mul_(2)


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("shapes", [[(3, 1)], [(2, 1), (1, 2), (4, 4)], [(2, 3), (5, 2)]])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_pairs_without_a_weight_need_no_work(shapes, num_layers, share):
    tower = make_tower(text_layers=num_layers).double()
    groups = [random(count, length, 16, seed=length, dtype=torch.float64) for count, length in shapes]
    tower_pass = PrefixTower(tower).read(random(5, 16, dtype=torch.float64), groups)
    num_classes = len(tower_pass.features)
    keep = torch.rand(6, num_classes, generator=torch.Generator().manual_seed(3)) < share
    keep[4] = False  # an example without any pair
    weights = random(6, num_classes, dtype=torch.float64) * keep
    directions = random(6, 12, dtype=torch.float64)
    fast, slow = tower_pass.pull_back_pairs(weights, directions), tower_pass.pull_back_all(weights, directions)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)
    assert not fast[4].any()


def test_prefix_suffixes_and_weights_are_left_alone():
    tower, prefix, groups = make_tower(), random(5, 16).requires_grad_(), [random(2, 2, 16)]
    before = [tensor.detach().clone() for tensor in (prefix, *groups, *tower.parameters())]
    encode(tower, prefix, groups).sum().backward()
    for tensor, old in zip((prefix, *groups, *tower.parameters()), before, strict=True):
        assert torch.equal(tensor, old)
