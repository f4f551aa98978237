"""Secure noise: the exact distribution, the accounted rounding, and no way back to the run's seed."""

import inspect
import math
import os

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest, norm

from hushprompt.errors import PrivacyError
from hushprompt.privacy import noise
from hushprompt.privacy.config import Channel, PrivacyConfig
from hushprompt.privacy.noise import add_secure_gaussian, discrete_gaussian
from hushprompt.privacy.plan import make_plan
from hushprompt.privacy.sampling import DisjointSampler, PoissonSampler
from hushprompt.privacy.system_random import SystemDraws, uniform_below


def bytes_of(seed):
    """A repeatable source of bytes, for statistics that must not fail by chance."""
    return np.random.default_rng(seed).bytes


def weights(bits, widest):
    values = np.arange(-widest, widest + 1)
    unnormalized = np.exp(-(values.astype(float) ** 2) / (2 * 4.0**bits))
    return values, unnormalized / unnormalized.sum()


@pytest.mark.parametrize("bits", [0, 1, 3])
def test_small_samples_have_exactly_the_discrete_gaussian_distribution(bits):
    values, expected = weights(bits, 60)
    drawn = discrete_gaussian(150_000, bits, bytes_of(bits))
    counts = np.array([(drawn == value).sum() for value in values])
    common = expected * len(drawn) > 20
    counts = np.append(counts[common], len(drawn) - counts[common].sum())
    shares = np.append(expected[common], 1 - expected[common].sum())
    used = shares * len(drawn) > 5
    assert chisquare(counts[used], shares[used] / shares[used].sum() * counts[used].sum()).pvalue > 1e-3


@pytest.mark.parametrize("numerator", [0, 1, 77, 255])
def test_trials_succeed_with_probability_exp_of_minus_the_fraction(numerator):
    got = noise._bernoulli_exp(np.full(200_000, numerator, dtype=np.uint64), 8, bytes_of(numerator)).mean()
    expected = math.exp(-numerator / 256)
    assert abs(got - expected) < 5 * math.sqrt(expected * (1 - expected) / 200_000 + 1e-12)


@pytest.mark.parametrize("bound", [1, 2, 3, 7, 20])
def test_numbers_below_a_bound_are_uniform(bound):
    counts = np.bincount(uniform_below(100_000, bound, bytes_of(bound)).astype(int), minlength=bound)
    assert counts.size == bound
    assert bound == 1 or chisquare(counts).pvalue > 1e-3


def test_words_beyond_the_last_full_cycle_are_drawn_again():
    words = iter([b"\xff" * 8, (5).to_bytes(8, "little")])
    assert uniform_below(1, 3, lambda size: next(words)) == [2]


def test_at_the_used_width_it_is_the_gaussian_of_that_deviation():
    drawn = discrete_gaussian(200_000, noise.GRID_BITS, bytes_of(5)) / 2**noise.GRID_BITS
    assert kstest(drawn, norm.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 5 / math.sqrt(200_000)
    assert abs((np.abs(drawn) > 3).mean() - 0.0027) < 5 * math.sqrt(0.0027 / 200_000)


def test_its_odds_differ_from_the_rounded_gaussians_by_what_is_claimed():
    for bits in (3, 4, 5):
        values, exact = weights(bits, 40 * 2**bits)
        near = np.abs(values) <= 6 * 2**bits
        edges = np.append(values - 0.5, values[-1] + 0.5) / 2**bits
        rounded = np.diff(norm.cdf(-np.abs(edges)) * -np.sign(edges))  # by tails, which keep their digits
        rounded = np.where(values == 0, 1 - 2 * norm.cdf(-0.5 / 2**bits), rounded)
        claimed = np.maximum(1 / 8, (values / 2**bits) ** 2 / 24) / 4**bits
        assert (np.abs(np.log(exact[near] / rounded[near])) <= 1.1 * claimed[near]).all()
    assert max(1 / 8, 40**2 / 24) / 4**noise.GRID_BITS < 5.9e-17
    assert norm.logsf(40) < -800


def released(value, std, seed=0, sensitivity=1.0):
    return add_secure_gaussian(value, std, sensitivity, bytes_of(seed))


def test_the_noise_is_larger_by_what_rounding_to_the_grid_can_move():
    """Two neighbors on the grid are no farther apart, in noise deviations, than sensitivity / std."""
    rng, std, sensitivity, d = np.random.default_rng(0), 2.0**15, 1.0, 4000
    worst, grids = 0.0, []
    spy = lambda size, bits, read: np.zeros(size, dtype=np.int64)  # noqa: E731
    original, noise.discrete_gaussian = noise.discrete_gaussian, spy
    try:
        for _ in range(20):
            move = rng.normal(size=d)
            move = torch.from_numpy(move / np.linalg.norm(move))
            base = torch.from_numpy(rng.uniform(-50, 50, size=d))
            pair = [released(v, std, sensitivity=sensitivity) for v in (base, base + move)]
            worst = max(worst, float((pair[0] - pair[1]).norm()))
            grids.append(pair[0])
    finally:
        noise.discrete_gaussian = original
    lost = 1.1 * std / sensitivity * math.sqrt(d) / 2**noise.GRID_BITS
    real_std = std / (1 - lost)
    assert worst > sensitivity, "rounding does move neighbors apart"
    assert worst / real_std <= sensitivity / std
    steps = grids[0].numpy() / (real_std / 2**noise.GRID_BITS)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-6)


def test_mean_and_deviation_of_a_release():
    out = released(torch.full((50_000,), 7.0, dtype=torch.float64), 3.0)
    assert abs(float(out.mean()) - 7.0) < 5 * 3.0 / math.sqrt(50_000)
    assert abs(float(out.std()) - 3.0) < 5 * 3.0 / math.sqrt(100_000)
    assert torch.equal(released(torch.ones(3), 0.0), torch.ones(3))


def test_two_releases_from_the_operating_system_differ():
    value = torch.zeros(4, dtype=torch.float64)
    assert not torch.equal(add_secure_gaussian(value, 1.0, 1.0), add_secure_gaussian(value, 1.0, 1.0))
    assert inspect.signature(add_secure_gaussian).parameters["read"].default is os.urandom


def test_a_grid_that_would_be_too_coarse_is_refused():
    with pytest.raises(PrivacyError, match="too much for secure noise"):
        released(torch.zeros(10_000, dtype=torch.float64), 1e6)


def test_private_batches_are_made_of_the_sources_bytes_and_of_nothing_else():
    sampler = PoissonSampler(sampling_prob=0.3)
    first, again, other = (sampler.batches(500, SystemDraws(bytes_of(seed)))[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert [len(batch) for batch in sampler.batches(500, SystemDraws(lambda size: b"\x00" * size))] == [500]
    batches = DisjointSampler(steps_per_round=4).batches(2000, SystemDraws(bytes_of(3)))
    assert chisquare([len(batch) for batch in batches]).pvalue > 1e-3
    with pytest.raises(PrivacyError, match="permutation is not drawn from the operating system"):
        SystemDraws().permutation(3)


def test_secure_runs_draw_their_batches_from_the_system_whatever_the_seed():
    config = PrivacyConfig(epsilon=1.0, noise_source="secure")
    plan = make_plan(config, PoissonSampler(), channels=frozenset({Channel.GLOBAL}), num_rounds=1, client_sizes=[100])
    streams = [plan.release_plan.private_stream(np.random.default_rng(0)) for _ in range(2)]
    assert all(isinstance(one, SystemDraws) for one in streams)
    assert not np.array_equal(*(one.random(size=20) for one in streams))
    assert inspect.signature(SystemDraws).parameters["read"].default is os.urandom
