"""A step in which clients are lost, at both ends, without messages: sums are exact, or nothing opens."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushprompt.deployment import rescue
from hushprompt.deployment.masks import SEED, mask, pair_secret, pair_seed
from hushprompt.deployment.roster import new_run_key, public_half
from hushprompt.errors import ProtocolError

KEYS = [new_run_key() for _ in range(7)]
PAIRS = [[pair_secret(own, public_half(other)) for other in KEYS] for own in KEYS]
CONTEXT, OTHER = (hashlib.sha256(text).digest() for text in (b"model", b"model for a victim"))


class RescueStep:
    """What clients make in one step of a plan that needs `least` of `num`."""

    def __init__(self, num, least, contexts=None, size=5):
        rng = np.random.default_rng(num)
        self.num, self.least = num, least
        self.contexts = contexts or [CONTEXT] * num
        self.vectors = rng.integers(-(2**63), 2**63, (num, size))
        seeds = [self._seeds(place, rng.bytes(SEED)) for place in range(num)]
        self.masked = [mask(vector, place, seeds[place]) for place, vector in enumerate(self.vectors)]
        self.sealed = [
            rescue.make_boxes(seeds[place], PAIRS[place][:num], self.contexts[place], place, least)
            for place in range(num)
        ]

    def _seeds(self, own, self_mask):
        context = self.contexts[own]
        pairs = {other: pair_seed(PAIRS[own][other], context, own, other) for other in range(self.num)}
        return {**pairs, own: self_mask}

    def give(self, holder, answered, sealed=None):
        boxes = rescue.rows_for({place: (sealed or self.sealed)[place] for place in answered}, holder)
        pairs = PAIRS[holder][: self.num]
        return rescue.give_shares(boxes, pairs, self.contexts[holder], holder, answered, self.least)

    def open(self, answered, holders, shares=None):
        given = {holder: self.give(holder, answered) for holder in holders} if shares is None else shares
        total = sum(self.masked[place] for place in answered)
        missing = [place for place in range(self.num) if place not in answered]
        return rescue.open_sum(total, answered, missing, given, self.least)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(2, 7))
def test_the_sum_of_who_answered_opens_exactly_by_any_holders_that_are_enough_and_by_no_fewer(data, num):
    least = data.draw(st.integers(2, num))
    step = RescueStep(num, least)
    some = st.lists(st.sampled_from(range(num)), unique=True, min_size=least)
    answered = sorted(data.draw(some))
    holders = data.draw(st.lists(st.sampled_from(answered), unique=True, min_size=least))
    assert (step.open(answered, holders) == step.vectors[answered].sum(axis=0)).all()
    with pytest.raises(ProtocolError, match="Not enough shares"):
        step.open(answered, holders[: least - 1])
    step.least -= 1  # who takes fewer shares for enough gets other numbers
    assert (step.open(answered, holders[: least - 1]) != step.vectors[answered].sum(axis=0)).all()


def test_boxes_have_the_size_that_is_told_and_nothing_readable():
    step = RescueStep(5, 4)
    assert step.sealed[0].shape == (5, rescue.box_size(5)) == (5, 28 + 16 * 5)
    assert step.give(1, [0, 1, 2, 4]).shape == (4, 2, 16)
    assert step.give(1, [0, 1, 2, 3, 4]).shape == (5, 1, 16)
    whole = np.concatenate(step.sealed).tobytes()
    for answered in ([0, 1, 2, 3], [0, 1, 2, 4]):
        for row in step.give(1, answered).reshape(-1, 16):
            assert row.tobytes() not in whole, "shares are not in the clear"


def test_of_who_answered_a_holder_gives_the_self_mask_and_of_a_missing_client_the_seeds_never_both():
    """Shares of two lists together would open one client alone: each is a part of what the box holds."""
    step = RescueStep(4, 3)
    all_there, one_gone = step.give(0, [0, 1, 2, 3]), step.give(0, [0, 1, 2])
    assert all_there.shape == (4, 1, 16)
    assert (one_gone[:, 0] == all_there[:3, 0]).all()
    seeds = {one_gone[row, 1].tobytes() for row in range(3)}
    assert not seeds & {row.tobytes() for row in all_there[:, 0]}


def test_clients_that_were_shown_another_message_open_nothing_together():
    step = RescueStep(6, 4, contexts=[CONTEXT] * 3 + [OTHER] * 3)
    for holder in range(6):
        with pytest.raises(ProtocolError, match="3 of the 6 boxes for this client can be opened, 4 are needed"):
            step.give(holder, list(range(6)))


def test_one_victim_with_another_message_is_in_no_sum():
    step = RescueStep(6, 4, contexts=[OTHER] + [CONTEXT] * 5)
    shares = {holder: step.give(holder, list(range(6))) for holder in range(1, 6)}
    assert not any(given[0].any() for given in shares.values()), "nobody gives a share of the victim's"
    with pytest.raises(ProtocolError, match="participant 1"):
        step.open(list(range(6)), [], shares)
    others = list(range(1, 6))  # said to be missing after all, with seeds that nobody gave
    made_up = {
        holder: np.concatenate([given[1:], np.ones((5, 1, 16), np.uint8)], 1) for holder, given in shares.items()
    }
    assert (step.open(others, [], made_up) != step.vectors[others].sum(axis=0)).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3), st.integers(0, 10**6))
def test_any_bit_flipped_in_a_box_is_left_out_and_the_sum_is_exact_without_that_holder(sender, bit):
    step = RescueStep(4, 3)
    sealed = [boxes.copy() for boxes in step.sealed]
    flat = sealed[sender][1]
    flat[bit // 8 % flat.size] ^= 1 << bit % 8
    given = step.give(1, [0, 1, 2, 3], sealed)
    assert not given[sender].any()
    shares = {0: step.give(0, [0, 1, 2, 3]), 1: given, 2: step.give(2, [0, 1, 2, 3]), 3: step.give(3, [0, 1, 2, 3])}
    assert (step.open([0, 1, 2, 3], [], shares) == step.vectors.sum(axis=0)).all()


def test_boxes_that_were_exchanged_or_come_from_another_step_do_not_open():
    step, later = RescueStep(4, 2), RescueStep(4, 2, contexts=[OTHER] * 4)
    for other in (step.sealed[1][[1, 0, 2, 3]], step.sealed[2], later.sealed[1]):
        given = step.give(0, [0, 1, 2, 3], [step.sealed[0], other, *step.sealed[2:]])
        assert not given[1].any()
        assert given[[0, 2, 3]].any(axis=(1, 2)).all()
