import hashlib
import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from helpers.hostile import HOSTILE, packed, with_text
from hushprompt.deployment.envelope import Envelope, canonical, fingerprint, refusal
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


def test_the_fingerprint_is_the_same_whoever_orders_or_stores_the_message():
    """A stored value: another version of a library must not give another context of the masks."""
    meta = {"step": 0, "clip_norm": 0.1, "participants": ["ann", "jos\u00e9"], "round": 3}
    tensors = {"b": torch.tensor([[1.5, -0.0]]), "a": torch.arange(3), "c": torch.zeros((), dtype=torch.bfloat16)}
    stored = "6e58b46cff88e69bd84bedc3052cb76d2a0d644398708dff1b42e1ef8bddfd09"
    assert fingerprint(Envelope("turn", meta, tensors)).hex() == stored
    turned = Envelope("turn", dict(reversed(meta.items())), dict(reversed(tensors.items())))
    strided = {**tensors, "b": torch.tensor([[1.5, 9.0, -0.0]])[:, ::2]}
    read = Envelope.from_bytes(turned.to_bytes(), MANY)
    for same in (turned, read, Envelope("turn", meta, strided)):
        assert fingerprint(same).hex() == same.digest == stored
    for other in ({"b": torch.tensor([[1.5, 0.0]])}, {"a": torch.arange(3).int()}, {"b": torch.tensor([1.5, -0.0])}):
        assert fingerprint(Envelope("turn", meta, {**tensors, **other})).hex() != stored


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


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_messages_are_refused(name):
    with pytest.raises(ProtocolError):
        Envelope.from_bytes(HOSTILE[name], MANY)


def read_or_refused(data):
    """Whether a message is read; one that is comes out of its own bytes again."""
    try:
        envelope = Envelope.from_bytes(data, MANY)
    except ProtocolError:
        return False
    assert Envelope.from_bytes(envelope.to_bytes(), MANY).digest == envelope.digest
    return True


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=90, deadline=None)
def test_mutated_messages_are_read_or_refused(seed):
    """A hundred messages each, whose checksum fits: the parser behind it sees them."""
    rng = np.random.default_rng(seed)
    body = message(words=["x", None, 0.1], more={"a": [1, 2]}).to_bytes()[40:]
    for _ in range(100):
        mutant = bytearray(body)
        for place in rng.integers(len(mutant) - 40, size=rng.integers(1, 4)):
            match rng.integers(4):
                case 0:
                    mutant[place] = rng.integers(256)
                case 1:
                    mutant[place] = ord(rng.choice(list('{}[]",:0129eE-.tfn\\')))
                case 2:
                    del mutant[place : place + rng.integers(1, 9)]
                case 3:
                    mutant[place:place] = mutant[max(0, place - 8) : place] * int(rng.integers(1, 9))
        read_or_refused(packed(bytes(mutant)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.lists(JSON, min_size=10, max_size=10))
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_json_that_somebody_made_up_is_read_or_refused(values):
    for value in values:
        read_or_refused(with_text(json.dumps({"kind": "turn", "meta": {"a": value}})))


def test_equal_values_are_the_same_bytes_wherever_they_are_written():
    assert canonical({"b": [1, 0.1], "a": "é"}) == '{"a":"é","b":[1,0.1]}'.encode()
    assert canonical(dict(reversed({"b": 1, "a": 2}.items()))) == canonical({"a": 2, "b": 1})
    assert len(message().digest) == 64
    other = Envelope("turn", {"round": 3}, {**message().tensors, "b": message().tensors["b"].double()})
    assert other.digest != message().digest
    assert Envelope("turn", {}, {"a": torch.tensor(3)}).digest != Envelope("turn", {}, {"a": torch.tensor([3])}).digest
