import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushprompt.deployment.shamir import INVERSES, PRODUCTS, combine, split


def test_products_are_those_of_aes():
    """FIPS 197, sections 4.2 and 4.2.1."""
    assert PRODUCTS[0x57, 0x83] == 0xC1
    assert PRODUCTS[0x57, 0x13] == 0xFE
    assert (PRODUCTS == PRODUCTS.T).all()
    assert all(PRODUCTS[value, INVERSES[value]] == 1 for value in range(1, 256))
    assert not PRODUCTS[0].any()
    a, b, c = np.random.default_rng(0).integers(256, size=(3, 500))
    assert (PRODUCTS[a, b ^ c] == PRODUCTS[a, b] ^ PRODUCTS[a, c]).all()


@settings(max_examples=40, deadline=None)
@given(st.data(), st.binary(min_size=1, max_size=40), st.sets(st.integers(1, 255), min_size=1, max_size=12))
def test_any_holders_as_many_as_the_threshold_open_the_secret(data, secret, places):
    places = sorted(places)
    threshold = data.draw(st.integers(1, len(places)))
    shares = split(np.frombuffer(secret, np.uint8), threshold, places)
    holders = data.draw(st.permutations(range(len(places))))[:threshold]
    assert combine(shares[holders], [places[holder] for holder in holders]).tobytes() == secret


def test_one_holder_fewer_sees_numbers_that_every_secret_gives_alike():
    """With threshold 3, whatever the secret byte, two shares take every pair of values once over all coefficients."""
    coefficients = np.array(list(itertools.product(range(256), repeat=2)), np.uint8).T.tobytes()
    for secret in (0, 0x53):
        shares = split(np.full(2**16, secret, np.uint8), 3, [1, 7, 9], lambda size: coefficients)
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert len(np.unique(shares[one].astype(int) * 256 + shares[other])) == 2**16


@pytest.mark.parametrize(
    ("threshold", "places"), [(0, [1, 2]), (3, [1, 2]), (1, [0, 1]), (1, [256]), (1, [3, 3]), (1, [])]
)
def test_what_is_no_sharing_is_refused(threshold, places):
    with pytest.raises(ValueError, match="holder"):
        split(np.zeros(4, np.uint8), threshold, places)
