"""Bounds against an independent implementation's numbers, against what they must not exceed, and against each other."""

import numpy as np
import pytest
from scipy.stats import norm

from hushprompt.audits.lower_bounds import (
    clopper_pearson_lower_bound,
    epsilon_lower_bound,
    f_dp_lower_bound,
    gdp_epsilon,
    gdp_lower_bound,
)

# m, r, v, delta, then what jax_privacy (github.com/google-deepmind/jax_privacy, commit 8967688) finds at 95 %:
# one-run and f-DP (Gaussian curve), from `_epsilon_one_run` and `_epsilon_one_run_fdp`, run once and noted here.
PUBLISHED = [
    (1000, 100, 100, 1e-5, 3.46538, 5.54903),
    (1000, 1000, 700, 1e-5, 0.73174, 1.37198),
    (5000, 500, 490, 1e-5, 3.33567, 4.95013),
    (200, 60, 55, 1e-3, 1.41035, 2.02628),
    (1000, 200, 190, 1e-4, 2.35256, 3.39409),
    (100_000, 1000, 990, 1e-6, 4.02122, 5.41231),
    (1000, 1000, 1000, 1e-5, 5.78228, 12.33457),
]


def counts(m, r, v, delta):
    return {"num_canaries": m, "num_guesses": r, "num_correct": v, "delta": delta}


@pytest.mark.parametrize(("m", "r", "v", "delta", "one_run", "f_dp"), PUBLISHED)
def test_one_run_bounds_are_those_of_another_implementation(m, r, v, delta, one_run, f_dp):
    assert epsilon_lower_bound(**counts(m, r, v, delta)) == pytest.approx(one_run, abs=2e-5)
    assert f_dp_lower_bound(**counts(m, r, v, delta)) == pytest.approx(f_dp, abs=2e-5)


@pytest.mark.parametrize(("m", "r", "v", "delta"), [case[:4] for case in PUBLISHED])
def test_the_gaussian_curve_is_at_least_as_tight_and_the_approximate_one_nearly_the_same(m, r, v, delta):
    one_run = epsilon_lower_bound(**counts(m, r, v, delta))
    assert f_dp_lower_bound(**counts(m, r, v, delta)) >= one_run
    assert f_dp_lower_bound(**counts(m, r, v, delta), curve="approximate") >= one_run - 0.01


@pytest.mark.parametrize("curve", ["gaussian", "approximate"])
def test_the_f_dp_bound_holds_for_what_it_supposes_as_often_as_it_says(curve):
    draws, too_large, mu = np.random.default_rng(1), 0, 1.0
    claim = gdp_epsilon(mu, 1e-5) if curve == "gaussian" else 1.0
    for _ in range(100):
        is_in = draws.random(200) < 0.5
        if curve == "gaussian":
            guesses = draws.standard_normal(200) + mu * is_in > mu / 2
        else:  # randomized response is the worst (epsilon, 0)-DP mechanism
            guesses = np.where(draws.random(200) < 1 / (1 + np.exp(-claim)), is_in, ~is_in)
        found = f_dp_lower_bound(**counts(200, 200, int((guesses == is_in).sum()), 1e-5), curve=curve)
        too_large += found > claim
    assert too_large <= 11  # 5 expected at 95 %, fewer where the bound is loose


@pytest.mark.parametrize("curve", ["gaussian", "approximate"])
def test_more_right_guesses_and_a_smaller_delta_never_lower_the_bound(curve):
    values = [f_dp_lower_bound(**counts(500, 100, right, 1e-5), curve=curve) for right in range(50, 101, 5)]
    assert values == sorted(values)
    assert values[0] == 0.0
    by_delta = [f_dp_lower_bound(**counts(500, 100, 95, delta), curve=curve) for delta in (1e-3, 1e-5, 1e-7)]
    assert by_delta == sorted(by_delta)
    assert f_dp_lower_bound(**counts(500, 0, 0, 1e-5), curve=curve) == 0.0


def test_clopper_pearson_at_a_fixed_threshold_is_that_of_another_implementation():
    draws = np.random.default_rng(0)
    in_scores, out_scores = draws.normal(1.5, 1, 400), draws.normal(0, 1, 500)
    found = clopper_pearson_lower_bound(in_scores, out_scores, delta=1e-5, threshold=1.0)
    assert found == pytest.approx(1.1808206183141248, abs=1e-9)  # jax_privacy, Explicit(1.0), significance 0.05


def test_bounds_of_independent_trials_come_near_and_stay_below():
    draws, mu, delta = np.random.default_rng(3), 1.0, 1e-2
    truth, too_large, found = gdp_epsilon(mu, delta), 0, []
    for _ in range(60):
        in_scores, out_scores = draws.normal(mu, 1, 4000), draws.normal(0, 1, 4000)
        by_mu = gdp_lower_bound(in_scores, out_scores, delta=delta)
        by_rates = clopper_pearson_lower_bound(in_scores, out_scores, delta=delta)
        too_large += max(by_mu, by_rates) > truth
        found.append((by_mu, by_rates))
    assert too_large <= 6
    assert np.median(found, axis=0)[0] > 0.75 * truth
    assert np.median(found, axis=0)[1] > 0.5 * truth


@pytest.mark.parametrize("bound", [clopper_pearson_lower_bound, gdp_lower_bound])
def test_no_difference_shows_nothing_and_few_trials_show_little(bound):
    draws = np.random.default_rng(4)
    assert bound(draws.normal(size=500), draws.normal(size=500), delta=1e-5) < 0.2
    assert bound(np.ones(1), np.zeros(1), delta=1e-5) == 0.0
    perfect = bound(np.ones(100), np.zeros(100), delta=0.01, threshold=0.5)
    assert 2 < perfect < 20


def test_epsilon_of_mu_is_the_known_curve():
    value = gdp_epsilon(1.0, 0.05)
    assert norm.cdf(-value + 0.5) - np.exp(value) * norm.cdf(-value - 0.5) == pytest.approx(0.05, rel=1e-6)
    assert gdp_epsilon(0.0, 1e-5) == 0.0
