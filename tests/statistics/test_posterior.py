"""The estimates: shrinkage to what is known without data, and no surprise without noise or without holders."""

import math

import pytest
import torch

from hushprompt.errors import ConfigError
from hushprompt.statistics.posterior import class_posterior, shared_mean
from hushprompt.statistics.sums import text_guess
from tests.helpers.class_worlds import NUM_CLASSES, class_world


@pytest.fixture(scope="module")
def world():
    return class_world()


def sums_of(world, std, seed=0, counts=30.0, texts=True):
    metric = world.metric
    guess = text_guess(world.texts, metric) if texts else 0.0
    rows = (world.features - metric.mean) @ metric.directions
    means = torch.stack([rows[world.labels == c].mean(dim=0) for c in range(NUM_CLASSES)])
    noise = torch.randn(means.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return counts * (means - means.mean(dim=0) - guess) + std * noise, means - means.mean(dim=0) - guess


def posterior_of(world, sums, std, counts=None, texts=True):
    counts = torch.full((NUM_CLASSES,), 30.0).double() if counts is None else counts
    stds = torch.full((NUM_CLASSES,), float(std)).double()
    shared = shared_mean(torch.zeros(world.metric.rank).double(), 360, 0.0, world.metric)
    directions = world.metric.texts(world.texts) if texts else None
    return class_posterior(sums, stds, counts, world.metric, shared, directions)


def test_the_shared_mean_is_kept_without_noise_and_dropped_under_much(world):
    total = torch.full((world.metric.rank,), 36.0).double()
    exact = shared_mean(total, 360, 0.0, world.metric)
    assert exact.value.tolist() == pytest.approx([0.1] * world.metric.rank)
    assert exact.variance <= 1e-11
    drowned = shared_mean(total, 360, 1e4, world.metric)
    assert not drowned.value.any()
    assert drowned.variance > 0
    half = shared_mean(total, 360, 36 / 2**0.5, world.metric)
    assert half.value.tolist() == pytest.approx([0.05] * world.metric.rank)


def test_no_images_and_a_sum_of_zero(world):
    zero = torch.zeros(world.metric.rank).double()
    with pytest.raises(ConfigError, match="num_images"):
        shared_mean(zero, 0, 1.0, world.metric)
    assert shared_mean(zero, 10, 0.0, world.metric).variance > 0


@pytest.mark.parametrize("texts", [True, False])
def test_much_noise_leaves_ignorance_and_no_noise_leaves_the_observation(world, texts):
    sums, offsets = sums_of(world, 0.0, texts=texts)
    known = posterior_of(world, sums, 0.0, texts=texts)
    assert known.ignorance < 0.01
    torch.testing.assert_close(known.estimate, offsets, rtol=0, atol=0.3)
    drowned = posterior_of(world, sums_of(world, 1e6, texts=texts)[0], 1e6, texts=texts)
    assert drowned.ignorance > 0.999
    assert drowned.estimate.abs().max() < 0.05 * offsets.abs().max()


def test_shrunken_means_are_closer_than_noisy_ones(world):
    sums, offsets = sums_of(world, 30.0)
    estimate = posterior_of(world, sums, 30.0).estimate
    assert (estimate - offsets).norm() < 0.8 * (sums / 30 - offsets).norm()


def test_a_class_that_nobody_holds_gets_what_the_others_share(world):
    counts = torch.full((NUM_CLASSES,), 30.0).double()
    counts[3] = 0.0
    sums, _ = sums_of(world, 1.0, texts=False)
    sums = sums + 60.0  # an offset of 2 that all classes share
    whatever = sums.clone()
    whatever[3] = 1e9
    a, b = (posterior_of(world, value, 1.0, counts, texts=False) for value in (sums, whatever))
    assert torch.equal(a.estimate, b.estimate), "its row is not looked at"
    assert a.estimate[3].mean() == pytest.approx(float(a.estimate.mean()), abs=1.0)
    assert a.estimate.isfinite().all()


def test_nobody_at_all_is_ignorance(world):
    zeros = torch.zeros(NUM_CLASSES).double()
    result = posterior_of(world, torch.zeros(NUM_CLASSES, world.metric.rank).double(), 1.0, zeros)
    assert result.ignorance == pytest.approx(1)
    assert not result.estimate.any()


def test_the_estimate_is_the_posterior_mean_of_the_model(world):
    """At one prior variance: the slow twin stacks the Gaussian model's precision matrix over one coordinate."""
    from hushprompt.statistics import posterior

    sums, _ = sums_of(world, 10.0)
    shared = shared_mean(torch.zeros(world.metric.rank).double(), 360, 0.0, world.metric)
    noise = (10.0 / 30) ** 2 + world.metric.within / 30 * torch.ones(NUM_CLASSES, 1)
    held = torch.ones(NUM_CLASSES, dtype=torch.bool)
    fit = posterior._fit(sums / 30, noise, held, 0.2, 0.1, world.metric, shared, None)
    spread = 0.2 * world.metric.between
    common = shared.variance + posterior.SHARED_VARIANCE * world.metric.between
    prior = spread * torch.eye(NUM_CLASSES).double() + common
    for j in range(world.metric.rank):
        total = prior + noise[:, j].diag()
        torch.testing.assert_close(fit.estimate[:, j], prior @ torch.linalg.solve(total, sums[:, j] / 30))
    evidence = sum(
        torch.distributions.MultivariateNormal(torch.zeros(NUM_CLASSES).double(), prior + noise[:, j].diag()).log_prob(
            sums[:, j] / 30
        )
        for j in range(world.metric.rank)
    )
    constant = world.metric.rank * NUM_CLASSES * math.log(2 * math.pi) / 2
    prior_of_variance = -0.5 * (math.log(0.2 / 0.1) / posterior.SPREAD) ** 2
    assert fit.log_likelihood == pytest.approx(float(evidence) + constant + prior_of_variance)
