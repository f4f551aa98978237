"""Noise shares: how many clients hide a sum, that their noise is the planned one, and that no other door is open."""

import dataclasses
import itertools
import math
import random

import dp_accounting
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hushprompt.errors import PrivacyError, ProtocolError
from hushprompt.federation.payload import add_shares
from hushprompt.privacy.clipping import ClippedSum
from hushprompt.privacy.config import SHARES_ONLY, Audience, Channel, PrivacyConfig
from hushprompt.privacy.mechanisms.gaussian import GaussianMechanism
from hushprompt.privacy.noise import discrete_gaussian, share_of_noise
from hushprompt.privacy.plan import make_plan
from hushprompt.privacy.release_plan import BatchClipping
from hushprompt.privacy.sampling import PoissonSampler
from hushprompt.privacy.shares import FARTHEST, STEPS, ShareGrid, ShareTerms

WORDS = np.iinfo(np.int64)


def terms(n, d=0, c=1, rescue=False):
    return ShareTerms(num_clients=n, max_dropouts=d, max_colluding=c, rescue=rescue)


def plan_of(num_clients=5, channels=frozenset({Channel.GLOBAL}), **privacy):
    given_noise = {"epsilon": None, "noise_multiplier_local": 2.0, "noise_multiplier_global": 3.0}
    config = PrivacyConfig(
        **{"noise_source": "seeded", "noise_at": "shares", "rounding": 0.0, **given_noise, **privacy}
    )
    sampler = PoissonSampler(sampling_prob=0.5)
    return make_plan(config, sampler, channels=channels, num_rounds=3, client_sizes=[20] * num_clients)


def tool(plan, seed=0, **more):
    given_tool = {"allowed": Channel.GLOBAL, "expected_count": 10.0, "rng": np.random.default_rng(seed), **more}
    return plan.mechanism(**given_tool)


def opened(plan, vectors, num_participants=None, **more):
    count = len(vectors) if num_participants is None else num_participants
    return tool(plan, **more).open_shares(Channel.GLOBAL, add_shares(vectors), count)


@pytest.mark.parametrize(
    ("n", "d", "c", "rescue", "least"),
    [(2, 0, 1, False, 3), (5, 3, 1, False, 6), (3, 1, 1, True, 4), (6, 2, 2, True, 7), (5, 0, 4, False, 6)],
)
def test_a_cohort_that_hides_nobody_is_refused_and_one_more_client_is_enough(n, d, c, rescue, least):
    with pytest.raises(PrivacyError, match=f"at least {least} clients a round"):
        terms(n, d, c, rescue)
    assert terms(least, d, c, rescue).honest >= 2


def test_terms_out_of_range_are_refused():
    with pytest.raises(PrivacyError, match="max_colluding must be at least 1"):
        terms(5, c=0)
    with pytest.raises(PrivacyError, match="at most 255 clients"):
        terms(256)
    for count in (7, 11):
        with pytest.raises(PrivacyError, match=f"not over {count}"):
            terms(10, d=2).honest_among(count)


def smallest_sum(of, num_honest, version, gone):
    """Fewest honest clients whose sum a server opens that shows client i the list without `gone[i]`, in a version.

    A holder gives shares of the secrets of w only in the version that w has, and once: of its self mask if w is on its
    list, of w's seeds with those who are not on it. Masks whose seeds stay closed are uniform, so what can be opened is
    the sum over each connected part of the graph of closed seeds, where all self masks are open.
    """
    need, everyone = of.least - of.max_colluding, range(num_honest)

    def open_pair(w, v):
        return sum(version[h] == version[w] and w not in gone[h] and v in gone[h] for h in everyone) >= need

    blinded = [sum(version[h] == version[w] and w not in gone[h] for h in everyone) < need for w in everyone]
    part = list(everyone)

    def root(i):
        return i if part[i] == i else root(part[i])

    for w, v in itertools.combinations(everyone, 2):
        if version[w] != version[v]:  # their masks of each other differ and never cancel
            blinded[w] |= not open_pair(w, v)
            blinded[v] |= not open_pair(v, w)
        elif not (open_pair(w, v) or open_pair(v, w)):
            part[root(w)] = root(v)
    groups = {}
    for w in everyone:
        groups.setdefault(root(w), []).append(w)
    return min((len(g) for g in groups.values() if not any(blinded[w] for w in g)), default=math.inf)


@pytest.mark.parametrize(("n", "d", "c", "versions"), [(3, 0, 1, 2), (4, 1, 1, 2), (5, 1, 1, 1), (5, 1, 2, 1)])
def test_no_strategy_of_a_server_opens_a_smaller_sum(n, d, c, versions):
    """Every list to every client, and every division of the clients over two versions of the turn."""
    of, num_honest = terms(n, d, c, rescue=True), n - c
    lists = [
        [frozenset(gone) for k in range(d + 1) for gone in itertools.combinations(sorted({*range(n)} - {me}), k)]
        for me in range(num_honest)
    ]
    worst = min(
        smallest_sum(of, num_honest, (0, *others), gone)
        for others in itertools.product(range(versions), repeat=num_honest - 1)
        for gone in itertools.product(*lists)
    )
    assert worst == of.honest_among(n) == of.honest


@pytest.mark.parametrize(("n", "d", "c"), [(7, 2, 1), (8, 2, 2), (9, 3, 1), (10, 3, 2), (12, 4, 1)])
def test_random_strategies_against_few_victims_open_no_smaller_sum(n, d, c):
    of, num_honest, rng = terms(n, d, c, rescue=True), n - c, random.Random(1)
    for _ in range(200):
        victims = rng.sample(range(n), min(n, d + rng.randint(0, 3)))
        others = [[v for v in victims if v != me] for me in range(num_honest)]
        gone = [frozenset(rng.sample(known, min(d, len(known)))) for known in others]
        version = [rng.randrange(2) if rng.random() < 0.3 else 0 for _ in range(num_honest)]
        assert smallest_sum(of, num_honest, version, gone) >= of.honest_among(n)


@given(st.integers(3, 255), st.data())
def test_fewer_participants_never_mean_less_noise_than_is_planned(n, data):
    c = data.draw(st.integers(1, n - 2))
    d = data.draw(st.integers(0, n - c - 2))
    for rescue in (False, True):
        if rescue and n <= 2 * d + c:
            continue
        of = terms(n, d, c, rescue)
        for count in (of.least, n):
            h = of.honest_among(count)
            assert 1 <= of.honest <= h <= count - c
            grid = ShareGrid.of(2.0, 0.5, 8192, h)
            assert math.sqrt(h) * grid.step * STEPS >= 2.0


@settings(max_examples=30)
@given(st.floats(0.1, 300), st.integers(1, 150_000), st.integers(2, 254), st.floats(1e-3, 1e3))
def test_the_noise_pays_for_what_rounding_adds_to_the_sensitivity(z, size, h, norm):
    grid = ShareGrid.of(z * norm, norm, size, h)
    moved = norm + 1.03125 * math.sqrt(size) * grid.step  # a half for each of two neighbors, and 2^-5 for the division
    assert math.sqrt(h) * STEPS * grid.step / moved >= z
    assert math.sqrt(h) * STEPS * grid.step <= 1.011 * z * norm


def test_a_grid_that_is_too_coarse_is_refused():
    with pytest.raises(PrivacyError, match="too much for noise shares"):
        ShareGrid.of(1e5, 1.0, 10**6, 2)


@example([1.7e308, -1.7e308], 1e-9)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=9), st.floats(1e-9, 1e3))
def test_neighbors_stay_neighbors_on_the_grid(values, step):
    """Rounding moves an entry by half a step, holding it back moves no two apart, and nothing else comes out."""
    grid, value = ShareGrid(step), np.array(values)
    whole = grid.encode(value)
    assert whole.dtype == np.int64
    assert np.abs(whole).max() <= FARTHEST
    assert not whole[np.isnan(value)].any()
    inside = np.abs(value) < 0.9 * FARTHEST * step
    exact = np.abs(whole[inside] * step - value[inside])
    assert (exact <= 0.5 * step + 1e-12 * np.abs(value[inside])).all()


def test_an_uncancelled_mask_is_refused():
    grid = ShareGrid(1.0)
    for wrong in (5 * 2**52, -5 * 2**52, WORDS.max, WORDS.min):
        with pytest.raises(ProtocolError, match="out of range"):
            grid.decode(np.array([0, wrong]), 4)
    assert grid.decode(np.array([4 * 2**52]), 4)[0] == 4 * 2**52


@given(st.lists(st.lists(st.integers(WORDS.min, WORDS.max), min_size=3, max_size=3), min_size=2, max_size=6), st.data())
def test_totals_are_equal_to_the_bit_in_any_order_and_under_masks_that_cancel(rows, data):
    vectors = [np.array(row, dtype=np.int64) for row in rows]
    total = add_shares(vectors)
    assert [int(x) % 2**64 for x in total] == [sum(column) % 2**64 for column in zip(*rows, strict=True)]
    order = data.draw(st.permutations(range(len(vectors))))
    mask = np.array(data.draw(st.lists(st.integers(WORDS.min, WORDS.max), min_size=3, max_size=3)), dtype=np.int64)
    hidden = [vectors[i] for i in order]
    hidden[0], hidden[1] = add_shares([hidden[0], mask]), add_shares([hidden[1], ~mask, np.ones(3, np.int64)])
    assert (add_shares(hidden) == total).all()


@pytest.mark.parametrize("source", ["seeded", "secure"])
@pytest.mark.parametrize(
    ("n", "d", "c", "rescue", "honest"),
    [(3, 0, 1, False, {3: 2}), (8, 2, 2, False, {8: 6, 6: 4}), (8, 2, 2, True, {8: 3, 6: 4})],
)
def test_shares_of_the_fewest_honest_clients_are_together_the_planned_noise(source, n, d, c, rescue, honest):
    size = 3000 if source == "secure" else 30_000
    plan = plan_of(n, noise_source=source, max_dropouts=d, max_colluding=c, rescue=rescue, clip_norm_global=0.5)
    for count, h in honest.items():
        zeros = ClippedSum(torch.zeros(size, dtype=torch.float64), 0.5)
        shares = [tool(plan, seed).share(Channel.GLOBAL, zeros, count) for seed in range(h)]
        grid = plan.release_plan.share_grid(0.5, 0, size, count)
        noise = add_shares(shares) * grid.step
        assert noise.std() == pytest.approx(3.0 * 0.5, rel=0.05)
        one = shares[0] * grid.step
        assert one.std() == pytest.approx(3.0 * 0.5 / math.sqrt(h), rel=0.05)
        assert abs(np.corrcoef(shares[0], shares[1])[0, 1]) < 5 / math.sqrt(size)


def test_the_share_of_a_release_is_the_exact_discrete_gaussian_of_the_package():
    stream = random.Random(3)
    drawn = share_of_noise(200, None, stream.randbytes)
    assert (drawn == discrete_gaussian(200, 30, random.Random(3).randbytes)).all()
    seeded = share_of_noise(200, np.random.default_rng(1))
    assert (seeded == np.rint(np.random.default_rng(1).normal(0, 2.0**30, 200))).all()


def test_what_is_opened_is_the_mean_of_the_clipped_sums_and_the_count_moves_the_norm():
    plan = plan_of(epsilon=math.inf, noise_multiplier_local=None, noise_multiplier_global=None, adaptive_quantile=0.5)
    rows = [torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(k)) * 0.3 for k in range(5)]
    sums = [tool(plan).clip(Channel.GLOBAL, each) for each in rows]
    released = opened(plan, [tool(plan).share(Channel.GLOBAL, each, 5) for each in sums])
    trusted = tool(dataclasses.replace(plan, release_plan=dataclasses.replace(
        plan.release_plan, config=dataclasses.replace(plan.config, noise_at="server"))))  # fmt: skip
    total = ClippedSum(sum(s.value for s in sums), 1.0, sum(s.centered_count for s in sums))
    due = trusted.release(Channel.GLOBAL, total)
    torch.testing.assert_close(released.value.reshape(3, 2), due.value.float(), atol=1e-7, rtol=1e-6)
    assert released.next_norms[Channel.GLOBAL] == pytest.approx(due.next_norms[Channel.GLOBAL], rel=1e-6)


def test_the_count_of_adaptive_norms_has_its_own_share():
    plan = plan_of(4, adaptive_quantile=0.5, adaptive_share=0.2)
    zeros = ClippedSum(torch.zeros(1), 1.0, 0.0)
    counts = np.array([tool(plan, seed).share(Channel.GLOBAL, zeros, 4)[-1] for seed in range(1500)])
    due = 0.5 * 3.0 / math.sqrt(0.2) / math.sqrt(3)  # half a contribution, the count's part, over three honest clients
    assert counts.std() * plan.release_plan.count_grid(4).step == pytest.approx(due, rel=0.05)


def test_only_the_planned_doors_are_open():
    plan, zeros = plan_of(), ClippedSum(torch.zeros(3), 1.0)
    with pytest.raises(PrivacyError, match="no party adds the global noise alone"):
        tool(plan).release(Channel.GLOBAL, zeros)
    for at in ("server", "client"):
        other = plan_of(noise_at=at)
        with pytest.raises(PrivacyError, match="is not shared"):
            tool(other).share(Channel.GLOBAL, zeros, 5)
        with pytest.raises(PrivacyError, match="is not shared"):
            opened(other, [np.zeros(3, np.int64)] * 5)
    with pytest.raises(PrivacyError, match="local release is not shared"):
        tool(plan_of(channels=frozenset(Channel))).share(Channel.LOCAL, zeros, 5)
    with pytest.raises(PrivacyError, match=r"sensitivity 33\.0"):
        tool(plan).share(Channel.GLOBAL, ClippedSum(torch.zeros(3), 33.0), 5)
    with pytest.raises(PrivacyError, match="releases on the local channel only"):
        tool(plan, allowed=Channel.LOCAL).share(Channel.GLOBAL, zeros, 5)
    for count in (0, 4, 6):
        with pytest.raises(PrivacyError, match=f"not over {count}"):
            tool(plan).share(Channel.GLOBAL, zeros, count)
    once, server = tool(plan), tool(plan)
    shared = once.share(Channel.GLOBAL, zeros, 5)
    server.open_shares(Channel.GLOBAL, shared, 5)
    for again in (lambda: once.share(Channel.GLOBAL, zeros, 5), lambda: server.open_shares(Channel.GLOBAL, shared, 5)):
        with pytest.raises(PrivacyError, match="A second global release"):
            again()


def test_the_server_has_the_epsilon_of_the_public_and_the_statement_says_against_whom():
    plan = plan_of(10, max_dropouts=2, max_colluding=3, audience="server", epsilon=4.0,
                   noise_multiplier_local=None, noise_multiplier_global=None)  # fmt: skip
    held = plan.guarantees()
    assert held[Audience.SERVER].epsilon == held[Audience.PUBLIC].epsilon == pytest.approx(4.0, rel=1e-3)
    assert (
        "up to 3 clients on the server's side and at least 5 others in every sum" in held[Audience.SERVER].statement()
    )
    assert held[Audience.SERVER].to_json()["terms"]["honest"] == 5
    assert "terms" not in held[Audience.PUBLIC].to_json()
    assert "server's side" not in held[Audience.PUBLIC].statement()
    trusted = plan_of(10, epsilon=4.0, noise_at="server", noise_multiplier_local=None, noise_multiplier_global=None)
    assert trusted.release_plan.noise_multipliers == plan.release_plan.noise_multipliers


@pytest.mark.parametrize(
    ("privacy", "message"),
    [
        ({"max_colluding": 0}, "max_colluding must be at least 1"),
        ({"max_dropouts": -1}, "max_dropouts must be at least 0"),
        ({"noise_at": "server", "rescue": True}, 'privacy.rescue needs privacy.noise_at = "shares"'),
        ({"noise_at": "client", "max_colluding": 2}, "max_colluding needs"),
        ({"noise_at": "auto", "audience": "server"}, 'needs privacy.noise_at = "shares" or "client"'),
        ({"noise_at": "client", "adaptive_quantile": 0.5}, 'needs privacy.noise_at = "server" or "shares"'),
        ({"max_dropouts": 3}, "at least 6 clients a round"),
    ],
)
def test_settings_that_prove_nothing_are_refused(privacy, message):
    with pytest.raises(PrivacyError, match=message):
        plan_of(**privacy)


def test_clipped_batches_have_no_shares():
    config = PrivacyConfig(noise_source="seeded", noise_at="shares")
    with pytest.raises(PrivacyError, match="have no noise shares"):
        make_plan(
            config,
            PoissonSampler(sampling_prob=0.5),
            channels=frozenset({Channel.GLOBAL}),
            num_rounds=1,
            client_sizes=[5] * 4,
            batch_clipping=BatchClipping(num_local_blocks=1, calibration="accountant"),
        )


def test_a_mechanism_that_says_more_noise_than_its_shares_have_is_refused(monkeypatch):
    monkeypatch.setattr(GaussianMechanism, "event", lambda self: dp_accounting.GaussianDpEvent(6.0))
    plan_of(noise_at="server")
    with pytest.raises(PrivacyError, match="noise shares are the planned noise"):
        plan_of()


def test_a_method_that_shares_nothing_needs_no_others():
    plan = plan_of(1, channels=frozenset({Channel.LOCAL}))
    assert not plan.release_plan.has_shares
    assert plan.epsilon(Audience.SERVER) == 0


def test_settings_of_shares_have_the_defaults_that_are_left_out_elsewhere():
    config = PrivacyConfig()
    assert {name: getattr(config, name) for name in SHARES_ONLY} == dict(SHARES_ONLY)
    assert plan_of(noise_at="auto").config.noise_at == "server"
