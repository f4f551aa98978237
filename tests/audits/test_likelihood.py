"""The closed form agrees with Gaussian likelihoods written out, and finds who is in a sum as well as one can."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from hushprompt.audits.likelihood import drifts, log_likelihood_ratios, over_steps, without


def written_out(released, contributions, drawn, noise_std, x):
    """ln N(r; mean of the others + a_x, C) - ln N(r; mean of the others, C), C of the others alone."""
    others = np.arange(len(drawn)) != x
    rows, p = contributions[others], drawn[others]
    covariance = (rows.T * (p * (1 - p))) @ rows + noise_std**2 * np.eye(len(released))
    mean = p @ rows
    return multivariate_normal.logpdf(released, mean + contributions[x], covariance) - multivariate_normal.logpdf(
        released, mean, covariance
    )


@pytest.mark.parametrize("num_examples", [3, 9])  # fewer and more than coordinates
def test_ratios_are_those_of_the_likelihoods_written_out(num_examples):
    rng = np.random.default_rng(num_examples)
    contributions = rng.normal(size=(num_examples, 5))
    drawn = rng.uniform(0.1, 0.9, size=num_examples)
    released = drawn @ contributions  # nothing is unexplained, so the noise is the one that is given
    found = log_likelihood_ratios(*map(torch.from_numpy, (released, contributions, drawn)), noise_std=0.7)
    expected = [written_out(released, contributions, drawn, 0.7, x) for x in range(num_examples)]
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_a_sum_without_noise_gives_everyone_away():
    rng = np.random.default_rng(0)
    contributions, is_in = torch.from_numpy(rng.normal(size=(30, 50))), rng.random(30) < 0.5
    released = contributions[is_in].sum(dim=0)
    found = log_likelihood_ratios(released, contributions, torch.full((30,), 0.5), 0.0)
    assert np.array_equal(found.numpy() > 0, is_in)


def test_what_is_unexplained_counts_as_noise():
    contributions = torch.eye(4, dtype=torch.float64)[:1]
    sure, unsure = (
        log_likelihood_ratios(torch.tensor([1.0, *rest]), contributions, torch.tensor([0.5]), 0.1)[0]
        for rest in ([0.0, 0.0, 0.0], [9.0, -9.0, 9.0])
    )
    assert sure > 10 * abs(unsure)


def test_an_example_that_may_not_take_part_is_weighed_as_a_mixture():
    ratios = [torch.tensor([0.0, 3.0], dtype=torch.float64), torch.tensor([-2.0, 0.0], dtype=torch.float64)]
    expected = sum(np.log(0.75 + 0.25 * np.exp(ratio.numpy())) for ratio in ratios)
    np.testing.assert_allclose(over_steps(ratios, 0.25), expected)
    np.testing.assert_allclose(over_steps(ratios, 1.0), [-2.0, 3.0])


def test_what_earlier_sums_had_in_common_is_taken_out():
    drift = torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64)
    directions = drifts([drift, 2 * drift])
    assert abs(without(drift + 1, directions) @ drift) < 1e-9
    assert torch.allclose(without(torch.eye(3), directions)[2], torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
