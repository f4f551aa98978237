import warnings

import pytest
import torch
from safetensors.torch import save_file

from hushprompt.backbones.emoji_network import EmojiNetwork, EmojiNetworkConfig, load_emoji_network
from hushprompt.errors import DataError

CONFIG = EmojiNetworkConfig(dim=12, text_width=16, text_layers=3, text_heads=2, context_length=12, vocab_size=30)


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        return EmojiNetwork(CONFIG).eval().requires_grad_(requires_grad=False)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_by_one(text, prefix, groups):
    rows = []
    for group in groups:
        for suffix in group:
            whole = torch.cat([prefix, suffix])[None]
            rows.append(text(whole, torch.tensor([whole.shape[1] - 1])))
    return torch.cat(rows)


@pytest.mark.parametrize("lengths", [[(3, 1)], [(2, 1), (1, 2), (4, 4)], [(1, 3)]])
def test_sharing_the_prefix_changes_neither_features_nor_gradients(network, lengths):
    prefix = random(5, 16).requires_grad_()
    groups = [random(count, length, 16, seed=length) for count, length in lengths]
    fast, slow = network.text.shared_prefix(prefix, groups), one_by_one(network.text, prefix, groups)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)
    weights = random(*slow.shape, seed=9)
    got, expected = (torch.autograd.grad((f * weights).sum(), prefix)[0] for f in (fast, slow))
    assert (got - expected).norm() < 1e-5 * expected.norm()


def test_a_batch_of_backward_passes_runs_without_a_warning(network):
    prefix = random(5, 16).requires_grad_()
    features = network.text.shared_prefix(prefix, [random(2, 1, 16), random(3, 2, 16)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (rows,) = torch.autograd.grad(features, prefix, random(7, *features.shape), is_grads_batched=True)
    assert rows.shape == (7, 5, 16)


def test_a_token_behind_the_end_changes_nothing(network):
    tokens = random(1, 8, 16)
    changed = torch.cat([tokens[:, :6], tokens[:, 6:] + 1], dim=1)
    end = torch.tensor([5])
    torch.testing.assert_close(network.text(tokens, end), network.text(changed, end))


def test_images_of_any_size_become_features(network):
    assert network.image(torch.rand(2, 3, 64, 64)).shape == (2, 12)
    assert network.image(torch.rand(1, 3, 80, 80)).shape == (1, 12)


def write(network, folder):
    save_file(
        {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}, folder / "w.safetensors"
    )
    (folder / "c.json").write_text(network.config_json())
    return folder / "w.safetensors", folder / "c.json"


def test_what_is_written_in_half_precision_is_read_frozen_in_single(network, tmp_path):
    again = load_emoji_network(*write(network, tmp_path))
    assert not any(p.requires_grad for p in again.parameters())
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    torch.testing.assert_close(again.text.positional_embedding, network.text.positional_embedding, rtol=1e-3, atol=1e-5)


def test_a_missing_cut_or_unfitting_file_is_named(network, tmp_path):
    weights, config = write(network, tmp_path)
    with pytest.raises(DataError, match=r"none\.safetensors"):
        load_emoji_network(tmp_path / "none.safetensors", config)
    config.write_text(EmojiNetwork(EmojiNetworkConfig(text_layers=1)).config_json())
    with pytest.raises(DataError, match="missing or damaged"):
        load_emoji_network(weights, config)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"w\.safetensors"):
        load_emoji_network(weights, config)
