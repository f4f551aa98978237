import hashlib
import hmac

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushprompt.deployment.masks import derive, expand, mask, pair_secret, pair_seed, unmask_sum

CONTEXT = hashlib.sha256(b"message").digest()
WHOLE = st.integers(-(2**63), 2**63 - 1)


def test_a_pair_secret_is_that_of_rfc_7748():
    """Section 6.1, Bob's side."""
    private = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    public = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    assert pair_secret(private, public).hex() == "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"


def hkdf(secret, salt, info, length):
    key, block, made = hmac.digest(salt, secret, "sha256"), b"", b""
    while len(made) < length:
        block = hmac.digest(key, block + info + bytes([len(made) // 32 + 1]), "sha256")
        made += block
    return made[:length]


def test_keys_are_those_of_rfc_5869():
    """Appendix A.1 for what stands here, and what stands here for the package's own."""
    made = hkdf(bytes([11] * 22), bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert made.hex().startswith("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865")
    for length in (16, 32):
        assert derive(b"s" * 32, CONTEXT, "mask 0 1", length) == hkdf(
            b"s" * 32, CONTEXT, b"hushprompt 1 mask 0 1", length
        )


def test_a_mask_is_the_counter_mode_of_aes():
    """Blocks 0 and 1 under the key 0, which test case 1 of GCM's specification shows too."""
    blocks = "66e94bd4ef8a2c3b884cfa59ca342b2e58e2fccefa7e3061367f1d57a4e7455a"
    assert expand(bytes(16), 4).astype("<u8").tobytes().hex() == blocks
    assert expand(bytes(16), 3).tolist() == expand(bytes(16), 4)[:3].tolist()


def test_a_seed_depends_on_the_pair_the_message_and_both_places():
    base = (b"p" * 32, CONTEXT, 1, 2)
    others = [(b"q" * 32, *base[1:]), (base[0], CONTEXT[::-1], 1, 2), (*base[:2], 0, 2), (*base[:2], 1, 12)]
    assert pair_seed(*base) == pair_seed(*base[:2], 2, 1)
    assert len({pair_seed(*args) for args in [base, *others]}) == 5


def seeds_of(place, num, context=CONTEXT):
    def pair(other):
        return bytes([min(place, other), max(place, other)]) * 16

    return {other: pair_seed(pair(other), context, place, other) for other in range(num) if other != place}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(WHOLE, min_size=3, max_size=3), min_size=2, max_size=6))
def test_masks_cancel_exactly_in_the_sum_over_all_whatever_the_vectors(values):
    vectors = np.array(values, np.int64)
    masked = np.stack([mask(vector, place, seeds_of(place, len(vectors))) for place, vector in enumerate(vectors)])
    assert (masked.sum(axis=0) == vectors.sum(axis=0)).all()
    assert (masked[1:].sum(axis=0) != vectors[1:].sum(axis=0)).any()


def test_what_did_not_cancel_can_be_taken_out_by_who_has_the_seeds():
    vectors = np.arange(12).reshape(4, 3)
    seeds = {place: {**seeds_of(place, 4), place: bytes([place]) * 16} for place in range(4)}
    total = sum(mask(vectors[place], place, seeds[place]) for place in (0, 1, 3))
    left = {place: {other: seeds[place][other] for other in (place, 2)} for place in (0, 1, 3)}
    assert (unmask_sum(total, left) == vectors[[0, 1, 3]].sum(axis=0)).all()


def test_clients_that_were_asked_different_things_do_not_cancel():
    size = 4096
    zeros = np.zeros(size, np.int64)
    contexts = [CONTEXT, CONTEXT, hashlib.sha256(b"another model").digest()]
    masked = [mask(zeros, place, seeds_of(place, 3, context)) for place, context in enumerate(contexts)]
    for members in ([0], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]):
        total = sum(masked[place] for place in members).view(np.uint64)
        ones = np.array([(total >> np.uint64(bit) & np.uint64(1)).mean() for bit in range(64)])
        assert abs(ones - 0.5).max() < 5 * 0.5 / np.sqrt(size), "uniform in every bit"


@pytest.mark.parametrize("key", [bytes(32), bytes([1, *bytes(31)]), b"short"])
def test_a_key_that_everybody_could_have_a_secret_with_is_refused(key):
    with pytest.raises(ValueError, match=r"shared key|32 bytes|bytes"):
        pair_secret(bytes(range(32)), key)
