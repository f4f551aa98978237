import pytest
import torch
from safetensors.torch import save_file

from hushprompt.errors import DataError
from hushprompt.models.embedded_network import EmojiNetwork, EmojiNetworkConfig, load_emoji_network

CONFIG = EmojiNetworkConfig(dim=12, text_width=16, text_layers=3, text_heads=2, context_length=12, vocab_size=30)


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        return EmojiNetwork(CONFIG).eval().requires_grad_(requires_grad=False)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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
