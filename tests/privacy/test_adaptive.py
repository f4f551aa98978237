"""Adaptive clip norms: the count is as sensitive as it says, the budget pays for it, and norms find their quantile."""

import math

import dp_accounting
import numpy as np
import pytest
import torch
from dp_accounting import pld
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from hushprompt.errors import ConfigError
from hushprompt.privacy import adaptive
from hushprompt.privacy.clipping import RAMP, add_up, clipped_sum
from hushprompt.privacy.config import Audience, Channel, PrivacyConfig
from hushprompt.privacy.plan import make_plan
from hushprompt.privacy.sampling import DisjointSampler

FULL = DisjointSampler(steps_per_round=1)
values = st.floats(-1e6, 1e6, width=32) | st.just(float("nan"))
batches = npst.arrays("float32", st.tuples(st.integers(1, 6), st.just(3)), elements=values)


def plan_of(channels=frozenset(Channel), num_rounds=30, **privacy):
    config = PrivacyConfig(**{"noise_source": "seeded", "adaptive_quantile": 0.5, "delta": 1e-5, **privacy})
    return make_plan(config, FULL, channels=channels, num_rounds=num_rounds, client_sizes=[100])


@given(batches, st.floats(1e-2, 1e3))
def test_one_contribution_moves_the_count_by_a_half_at_most(data, clip_norm):
    grads = torch.from_numpy(data)
    whole = clipped_sum(grads, clip_norm).centered_count
    for index in range(len(grads)):
        rest = clipped_sum(torch.cat([grads[:index], grads[index + 1 :]]), clip_norm).centered_count
        assert abs(whole - rest) <= adaptive.COUNT_SENSITIVITY * (1 + 1e-12)


def test_the_last_bits_of_all_others_move_the_count_by_next_to_nothing():
    at_the_norm = torch.full((200, 1), 2.0)
    counts = [clipped_sum(at_the_norm * (1 + bits), 2.0).centered_count for bits in (-1e-6, 0.0, 1e-6)]
    assert max(counts) - min(counts) <= 200 * 2.1e-6 / RAMP


@given(npst.arrays("float32", st.tuples(st.integers(0, 5), st.just(3)), elements=values), st.floats(1e-2, 1e3))
def test_a_client_that_is_not_there_moves_the_count_by_a_half_at_most(data, clip_norm):
    plan = plan_of(privacy_unit="client", audience=Audience.PUBLIC, clip_norm_global=clip_norm, delta=1e-2)
    client = plan.mechanism(allowed=Channel.LOCAL, expected_count=5.0, rng=np.random.default_rng(0))
    present = client.clip(Channel.GLOBAL, torch.from_numpy(data))
    absent = client.clip(Channel.GLOBAL, torch.zeros(0, 3))
    assert abs(present.centered_count - absent.centered_count) <= adaptive.COUNT_SENSITIVITY
    assert absent.value.shape == present.value.shape


def test_the_count_says_how_many_were_not_clipped():
    grads = torch.tensor([[0.5, 0.0], [3.0, 4.0], [0.0, 0.0], [float("nan"), 1.0]])
    assert clipped_sum(grads, 1.0).centered_count == 2 - 4 / 2
    parts = [clipped_sum(grads[:1], 1.0), clipped_sum(grads[1:3], 1.0)]
    assert add_up(parts).centered_count == 0.5 + 0.0


@given(st.floats(0.1, 300), st.floats(0.001, 0.9))
def test_sum_and_count_are_one_release_with_the_planned_multiplier(z, share):
    z_sum, s = adaptive.sum_multiplier(z, share), adaptive.count_std(z, share)
    assert z_sum == pytest.approx((z**-2 - (2 * s) ** -2) ** -0.5), "Theorem 1 of Andrew et al."
    assert z_sum > z


@pytest.mark.parametrize("audience", [Audience.PUBLIC, Audience.PERSONAL])
def test_the_composed_event_with_every_count_in_it_costs_what_is_claimed(audience):
    plan = plan_of(epsilon=2.0, audience=audience)
    releases = []
    for channel in Channel:
        z, share = plan.release_plan.noise_multipliers[channel], plan.config.adaptive_share
        releases += [
            dp_accounting.GaussianDpEvent(plan.release_plan.sum_multiplier(channel)),
            dp_accounting.GaussianDpEvent(adaptive.count_std(z, share) / adaptive.COUNT_SENSITIVITY),
        ]
    event = dp_accounting.SelfComposedDpEvent(dp_accounting.ComposedDpEvent(releases), 30)
    assert pld.PLDAccountant().compose(event).get_epsilon(1e-5) == pytest.approx(plan.epsilon(audience), rel=1e-3)
    assert plan.epsilon(audience) <= 2.0


def test_the_noise_of_sum_and_count_is_the_planned_one():
    plan = plan_of(frozenset({Channel.GLOBAL}), epsilon=None, noise_multiplier_local=3.0, noise_multiplier_global=3.0,
                   clip_norm_global=2.0, adaptive_rate=1.0)  # fmt: skip
    sums, shares = [], []
    for seed in range(1500):
        server = plan.mechanism(allowed=Channel.GLOBAL, expected_count=100.0, rng=np.random.default_rng(seed))
        summed = server.clip(Channel.GLOBAL, torch.cat([torch.full((60, 1), 0.1), torch.full((40, 1), 9.0)]))
        released = server.release(Channel.GLOBAL, summed)
        sums.append(float(released.value) * 100)
        shares.append(0.5 - math.log(released.next_norms[Channel.GLOBAL] / 2.0))
    assert np.std(sums) == pytest.approx(3.0 / math.sqrt(0.95) * 2.0, rel=0.05)
    assert np.mean(shares) == pytest.approx(0.6, abs=0.007)
    assert np.std(shares) * 100 == pytest.approx(0.5 * 3.0 / math.sqrt(0.05), rel=0.05)
    assert abs(np.corrcoef(sums, shares)[0, 1]) < 0.1


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("start", [0.01, 100.0])
def test_a_norm_finds_its_quantile(quantile, start):
    plan = plan_of(frozenset({Channel.GLOBAL}), epsilon=30.0, num_rounds=150, adaptive_quantile=quantile)
    rng, norm = np.random.default_rng(0), start
    grads = torch.from_numpy(rng.exponential(size=(400, 1)))
    for _ in range(150):
        server = plan.mechanism(allowed=Channel.GLOBAL, expected_count=400.0, rng=rng, clip_norms={"global": norm})
        norm = server.release(Channel.GLOBAL, server.clip(Channel.GLOBAL, grads)).next_norms[Channel.GLOBAL]
    assert float((grads <= norm).double().mean()) == pytest.approx(quantile, abs=0.08)


def test_a_far_count_moves_a_norm_by_one_rate_at_most():
    for count in (1e9, -1e9):
        moved = adaptive.next_norm(1.0, count, 10.0, quantile=0.5, rate=0.2)
        assert moved == pytest.approx(math.exp(math.copysign(0.1, -count)))


def test_norms_stay_where_floating_point_numbers_keep_to_them():
    assert adaptive.next_norm(1e-30, 5.0, 10.0, quantile=0.5, rate=0.2) == 1e-30
    assert adaptive.next_norm(1e30, -5.0, 10.0, quantile=0.5, rate=0.2) == 1e30


def test_fixed_norms_leave_no_next_norm_and_the_whole_budget_to_the_sum():
    plan = plan_of(adaptive_quantile=None)
    server = plan.mechanism(allowed=Channel.GLOBAL, expected_count=1.0, rng=np.random.default_rng(0))
    released = server.release(Channel.GLOBAL, server.clip(Channel.GLOBAL, torch.ones(1, 2)))
    assert released.next_norms == {}
    assert plan.release_plan.sum_multiplier(Channel.GLOBAL) == plan.release_plan.noise_multipliers[Channel.GLOBAL]


@pytest.mark.parametrize(
    "wrong",
    [
        {"adaptive_quantile": 1.0},
        {"adaptive_quantile": 0.5, "noise_at": "client"},
        {"adaptive_share": 0.0},
        {"adaptive_rate": 0.0},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match="adaptive_"):
        PrivacyConfig(**wrong)
