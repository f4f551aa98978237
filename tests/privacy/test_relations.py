"""Both neighboring relations for every sampler, against direct numerical integration of the hockey stick.

Releases are one-dimensional here: for Gaussian noise only the length of the difference of two sums matters.
"""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm

from hushprompt.privacy.accounting import epsilon
from hushprompt.privacy.releases import GaussianReleases

DELTA = 1e-3
GRID = np.linspace(-15, 15, 400_001)


def divergence(p, q, at, *spacing):
    """Hockey-stick divergence of two densities on a grid: sup over events of P - e^at Q."""
    total = np.maximum(p - math.exp(at) * q, 0)
    for step in spacing:
        total = np.trapezoid(total, dx=step, axis=-1)
    return float(total)


def claimed(z, num_steps, relation, q=1.0):
    releases = GaussianReleases(num_steps=num_steps, noise_multiplier=z, sampling_prob=q)
    return epsilon(releases, delta=DELTA, relation=relation)


def sampled(moves, z, q):
    """Density of one release where an example that takes part moves the sum by `moves`."""
    return (1 - q) * norm.pdf(GRID, 0, z) + q * norm.pdf(GRID, moves, z)


@pytest.mark.parametrize(("z", "q"), [(0.8, 0.1), (1.5, 0.5), (2.0, 0.9), (1.0, 1.0)])
def test_poisson_and_full_batch_under_add_remove(z, q):
    value, dx = claimed(z, 1, "add_remove", q), GRID[1] - GRID[0]
    present, absent = sampled(1.0, z, q), norm.pdf(GRID, 0, z)
    worst = max(divergence(present, absent, value, dx), divergence(absent, present, value, dx))
    assert worst <= DELTA * 1.001
    below = value - 3e-3
    assert max(divergence(present, absent, below, dx), divergence(absent, present, below, dx)) > DELTA


@pytest.mark.parametrize(("z", "q"), [(0.8, 0.1), (1.5, 0.5), (2.0, 0.9), (1.0, 1.0)])
def test_poisson_and_full_batch_under_replace_one(z, q):
    value, dx = claimed(z, 1, "replace_one", q), GRID[1] - GRID[0]
    densities = [sampled(moves, z, q) for moves in np.linspace(-1, 1, 9)]
    for first, second in itertools.product(densities, repeat=2):
        assert divergence(first, second, value, dx) <= DELTA * 1.001
    if q == 1:  # exact
        assert divergence(sampled(1.0, z, q), sampled(-1.0, z, q), value - 1e-3, dx) > DELTA


def test_replace_one_is_not_the_add_remove_value():
    z = 1.0
    short, dx = claimed(z, 1, "add_remove"), GRID[1] - GRID[0]
    assert divergence(sampled(1.0, z, 1.0), sampled(-1.0, z, 1.0), short, dx) > 10 * DELTA


def pair_of_steps(assignments, z):
    """Density of the releases of two disjoint batches, where the example is in the first or the second by a coin."""
    x = np.linspace(-9, 9, 1501)
    one = lambda move: norm.pdf(x, move, z)  # noqa: E731
    return sum(0.5 * np.outer(one(first), one(second)) for first, second in assignments), x[1] - x[0]


@pytest.mark.parametrize(("relation", "before", "after"), [("add_remove", 1.0, 0.0), ("replace_one", 1.0, -1.0)])
def test_disjoint_batches_cost_one_release_a_round(relation, before, after):
    z = 1.2
    value = claimed(z, 1, relation)
    present, step = pair_of_steps([(before, 0.0), (0.0, before)], z)
    other, _ = pair_of_steps([(after, 0.0), (0.0, after)], z)
    assert max(divergence(present, other, value, step, step), divergence(other, present, value, step, step)) <= DELTA
    # A public assignment gives all that is claimed: nothing is lost by not hiding it.
    x_only, _ = pair_of_steps([(before, 0.0), (before, 0.0)], z)
    x_other, _ = pair_of_steps([(after, 0.0), (after, 0.0)], z)
    assert divergence(x_only, x_other, value - 5e-3, step, step) > DELTA


@pytest.mark.parametrize("q", [0.9, 0.99])
def test_not_counting_the_sampling_is_taken_where_it_is_tighter(q):
    assert claimed(2.0, 10, "replace_one", q) <= claimed(2.0, 10, "replace_one", 1.0)


def test_a_composition_of_two_sampled_replacements_agrees_with_a_double_integral():
    z, q = 1.5, 0.3
    value = claimed(z, 2, "replace_one", q)
    x = np.linspace(-10, 10, 1601)
    one = lambda move: (1 - q) * norm.pdf(x, 0, z) + q * norm.pdf(x, move, z)  # noqa: E731
    step = x[1] - x[0]
    for first, second in ((1.0, -1.0), (1.0, 0.0), (0.0, 1.0)):
        p, r = np.outer(one(first), one(first)), np.outer(one(second), one(second))
        assert divergence(p, r, value, step, step) <= DELTA * 1.001
