import pytest
import torch

from hushprompt.models import packing
from hushprompt.models.packing import bins, encode_packed, layout


@pytest.mark.parametrize(("num_prefix", "lengths"), [(3, (1, 2, 2, 4)), (1, (3,)), (17, (2, 2))])
def test_a_token_sees_its_own_prompt_up_to_itself(num_prefix, lengths):
    packed = layout(num_prefix, lengths)
    start = num_prefix
    for length, end in zip(lengths, packed.ends, strict=True):
        own = [*range(num_prefix), *range(start, start + length)]
        assert packed.positions[own].tolist() == list(range(num_prefix + length))
        causal = torch.ones(len(own), len(own)).tril()
        assert torch.equal((packed.mask[own][:, own] == 0).float(), causal)
        hidden = [index for index in range(len(packed.positions)) if index not in own]
        assert bool((packed.mask[own[num_prefix:]][:, hidden] == float("-inf")).all())
        assert end == own[-1]
        start += length


def test_many_suffixes_go_into_several_sequences(monkeypatch):
    monkeypatch.setattr(packing, "MAX_TOKENS", 10)
    assert bins(4, [2, 2, 2, 3, 3, 9]) == [(2, 2, 2), (3, 3), (9,)]
    assert bins(12, [1, 1]) == [(1,), (1,)]


@pytest.mark.parametrize("max_tokens", [1, 9, 256])
def test_outputs_come_in_the_order_of_the_suffixes(monkeypatch, max_tokens):
    monkeypatch.setattr(packing, "MAX_TOKENS", max_tokens)
    prefix = torch.ones(4, 2)
    suffixes = [torch.arange(6.0).reshape(3, 1, 2), torch.arange(12.0).reshape(2, 3, 2)]

    def add_up_what_is_seen(tokens, packed):
        return ((packed.mask == 0).float() @ tokens)[packed.ends]

    expected = torch.cat([4 + group.sum(dim=1) for group in suffixes])
    torch.testing.assert_close(encode_packed(add_up_what_is_seen, prefix, suffixes), expected)
