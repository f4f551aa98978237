import numpy as np
import pytest

from hushprompt.errors import ConfigError
from hushprompt.privacy.sampling import DisjointSampler, EqualBatchesSampler, PoissonSampler


def test_poisson_includes_each_example_with_its_probability_independently():
    sampler = PoissonSampler(sampling_prob=0.2, steps_per_round=4000)
    joined = np.zeros((4000, 5))
    for step, batch in enumerate(sampler.batches(5, np.random.default_rng(0))):
        joined[step, batch] = 1
    assert np.abs(joined.mean(axis=0) - 0.2).max() < 5 * (0.16 / 4000) ** 0.5
    assert np.abs(np.corrcoef(joined.T) - np.eye(5)).max() < 5 / 4000**0.5


def test_poisson_batch_sizes_vary_as_a_binomial_does():
    sampler = PoissonSampler(sampling_prob=0.3, steps_per_round=4000)
    sizes = np.array([len(batch) for batch in sampler.batches(50, np.random.default_rng(1))])
    assert abs(sizes.mean() - sampler.expected_batch_size(50)) < 0.3
    assert abs(sizes.var() - 50 * 0.3 * 0.7) < 1.5


def test_equal_batches_draw_small_clients_more_often():
    sampler = EqualBatchesSampler(batch_size=6, steps_per_round=4000)
    for size, prob in ((4, 1.0), (12, 0.5), (60, 0.1)):
        assert sampler.amplification_for(size) == prob
        assert sampler.expected_batch_size(size) == min(6, size)
        sizes = np.array([len(batch) for batch in sampler.batches(size, np.random.default_rng(size))])
        assert abs(sizes.mean() - min(6, size)) < 0.2
    assert sampler.num_releases(7) == 28000


def test_every_poisson_step_is_a_release():
    sampler = PoissonSampler(sampling_prob=0.1, steps_per_round=3)
    assert sampler.num_releases(7) == 21
    assert sampler.amplification_for(41) == 0.1


def test_disjoint_batches_use_each_example_exactly_once_a_round():
    sampler = DisjointSampler(steps_per_round=4)
    batches = sampler.batches(41, np.random.default_rng(2))
    assert len(batches) == 4
    assert sorted(np.concatenate(batches)) == list(range(41))
    assert sampler.num_releases(7) == 7
    assert sampler.amplification_for(41) == 1.0


def test_one_example_more_changes_one_disjoint_batch_and_leaves_the_others():
    sampler = DisjointSampler(steps_per_round=5)
    without = sampler.batches(30, np.random.default_rng(3))
    with_one = sampler.batches(31, np.random.default_rng(3))
    changed = [not np.array_equal(a, b) for a, b in zip(without, with_one, strict=True)]
    assert sum(changed) == 1


def test_full_batch_is_one_disjoint_batch():
    assert np.array_equal(DisjointSampler(steps_per_round=1).batches(5, np.random.default_rng(0))[0], np.arange(5))


def test_the_same_stream_draws_the_same_batches():
    sampler = PoissonSampler(sampling_prob=0.5)
    first, second = (sampler.batches(20, np.random.default_rng(4))[0] for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("prob", [0.0, -0.1, 1.5, float("nan")])
def test_an_impossible_probability_is_refused(prob):
    with pytest.raises(ConfigError, match="sampling_prob"):
        PoissonSampler(sampling_prob=prob)
