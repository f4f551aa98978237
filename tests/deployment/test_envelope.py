import hashlib

import pytest
import torch
from safetensors.torch import save

from hushprompt.deployment.envelope import Envelope, refusal
from hushprompt.errors import ProtocolError

MANY = 10**6


def message(**meta):
    return Envelope("turn", {"round": 3, **meta}, {"b": torch.arange(4.0), "a": torch.ones(2, 3, dtype=torch.float64)})


def test_a_message_comes_out_as_it_went_in():
    sent = message(words=["x", None, 0.1])
    got = Envelope.from_bytes(sent.to_bytes(), MANY)
    assert (got.kind, got.meta) == ("turn", {"round": 3, "words": ["x", None, 0.1]})
    assert list(got.tensors) == ["a", "b"]
    assert all(torch.equal(got.tensors[name], sent.tensors[name]) for name in "ab")
    assert got.tensors["a"].dtype == torch.float64
    assert got.num_bytes == 4 * 4 + 6 * 8
    assert got.to_bytes() == sent.to_bytes()
    assert Envelope.from_bytes(refusal("no").to_bytes(), MANY).is_refusal


def test_the_digest_names_exactly_this_message():
    swapped = Envelope("turn", {"round": 3}, dict(reversed(message().tensors.items())))
    assert message().digest == swapped.digest
    assert message().digest != message(round=4).digest
    moved = Envelope("turn", {"round": 3}, {**message().tensors, "b": torch.arange(4.0) + 1})
    assert message().digest != moved.digest


def test_a_bit_flipped_anywhere_is_noticed():
    data = message().to_bytes()
    for place in range(0, len(data), 7):
        broken = bytearray(data)
        broken[place] ^= 1
        with pytest.raises(ProtocolError, match=r"checksum|no message|cannot be read"):
            Envelope.from_bytes(bytes(broken), MANY)


@pytest.mark.parametrize("length", [0, 5, 40, 60])
def test_a_cut_message_is_refused(length):
    with pytest.raises(ProtocolError, match=r"checksum|no message|cannot be read"):
        Envelope.from_bytes(message().to_bytes()[:length], MANY)


def test_a_longer_message_than_asked_for_is_not_read():
    data = message().to_bytes()
    with pytest.raises(ProtocolError, match=f"has {len(data)} bytes; at most {len(data) - 1}"):
        Envelope.from_bytes(data, len(data) - 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(bad):
    data = Envelope("turn", {}, {"a": torch.tensor([1.0, bad])}).to_bytes()
    with pytest.raises(ProtocolError, match=r"'a'.*NaN or infinite"):
        Envelope.from_bytes(data, MANY)
    with pytest.raises(ValueError, match="JSON"):
        Envelope("turn", {"norm": bad}).to_bytes()


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"kind": "turn"}', '{"kind": 3, "meta": {}}', '{"kind": "x", "meta": {"a": NaN}}']
)
def test_well_packed_nonsense_is_refused(content):
    body = save({}, metadata={"hushprompt": content})
    with pytest.raises(ProtocolError, match=r"cannot be read|no kind"):
        Envelope.from_bytes(b"hushmsg1" + hashlib.sha256(body).digest() + body, MANY)
