"""Every score is checked where the right answer is known: a closed form, a slow twin, or a world made for it."""

import numpy as np
import pytest
from scipy.stats import norm

from hushprompt.audits import metrics
from hushprompt.audits.scores import (
    confidence_logits,
    lira_offline,
    lira_online,
    rmia_offline,
    shadow_means,
    standardized,
    true_log_probs,
    tune_rmia,
)
from hushprompt.errors import ConfigError


def rng(seed=0):
    return np.random.default_rng(seed)


def gaussian_world(gap, num_models=65, num_candidates=300, seed=0):
    """Phi of each candidate is N(mean of the example, 1), `gap` higher where the model trained on it."""
    draws = rng(seed)
    is_in = draws.random((num_models, num_candidates)) < 0.5
    means = 5 * draws.standard_normal(num_candidates)
    return means + gap * is_in + draws.standard_normal((num_models, num_candidates)), is_in


def leave_one_out(score, phi, is_in):
    rest = [np.arange(len(phi)) != model for model in range(len(phi))]
    return np.stack([score(phi[k], phi[rest[k]], is_in[rest[k]]) for k in range(len(phi))])


def test_phi_is_the_logit_of_the_true_class_and_keeps_its_digits():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]])
    labels = np.array([0, 1])
    expected = [np.log(0.7 / 0.3), np.log(0.25 / 0.75)]
    np.testing.assert_allclose(confidence_logits(np.log(probabilities), labels), expected)
    np.testing.assert_allclose(true_log_probs(np.log(probabilities), labels), np.log([0.7, 0.25]))
    sure = np.array([[-1e-30, -80.0, -81.0]])
    assert confidence_logits(sure, np.array([0]))[0] == pytest.approx(80 - np.log1p(np.exp(-1.0)))


def test_phi_of_many_models_at_once_is_phi_of_each():
    log_probs = np.log(rng().dirichlet(np.ones(4), size=(3, 5)))
    labels = np.array([0, 1, 2, 3, 0])
    together = confidence_logits(log_probs, labels)
    for one, alone in zip(together, log_probs, strict=True):
        np.testing.assert_allclose(one, confidence_logits(alone, labels))


@pytest.mark.parametrize("gap", [0.0, 0.5, 2.0])
def test_lira_reaches_the_best_possible_auc_of_a_gaussian_world(gap):
    phi, is_in = gaussian_world(gap)
    best = norm.cdf(gap / np.sqrt(2))
    for score in (lira_online, lira_offline, standardized):
        found = metrics.auc(leave_one_out(score, phi, is_in).ravel(), is_in.ravel())
        assert best - 0.02 < found < best + 0.015, score
    by_loss = metrics.auc(phi.ravel(), is_in.ravel())
    assert by_loss < best - 0.1 or gap < 1  # without calibration, hard and easy examples drown the signal


def test_lira_online_is_the_ratio_of_two_densities():
    shadows = np.array([[0.0, 3.0], [2.0, 5.0], [10.0, 1.0], [12.0, 3.0]])
    is_in = np.array([[False, True], [False, True], [True, False], [True, False]])
    found = lira_online(np.array([4.0, 4.0]), shadows, is_in)
    std = np.sqrt(4 / 2)  # two pairs one off their means on each side, two degrees of freedom
    for index, (mean_in, mean_out) in enumerate([(11.0, 1.0), (4.0, 2.0)]):
        assert found[index] == pytest.approx(norm.logpdf(4, mean_in, std) - norm.logpdf(4, mean_out, std))


def test_lira_offline_is_how_far_phi_lies_above_what_models_without_the_example_say():
    shadows = np.array([[0.0, 3.0], [2.0, 5.0], [10.0, 1.0], [12.0, 3.0]])
    is_in = np.array([[False, True], [False, True], [True, False], [True, False]])
    z = np.array([4.0 - 1.0, 4.0 - 2.0]) / np.sqrt(2)
    found = lira_offline(np.array([4.0, 4.0]), shadows, is_in)
    np.testing.assert_allclose(found, z)  # the paper's 1 - P[Z > phi] is its normal distribution function: one order
    assert np.array_equal(np.argsort(norm.cdf(z)), np.argsort(found))


def test_members_and_non_members_may_vary_differently():
    draws, is_in = rng(1), rng(2).random((64, 200)) < 0.5
    phi = np.where(is_in, 0.1, 1.0) * draws.standard_normal((64, 200))
    found = metrics.auc(leave_one_out(lira_online, phi, is_in).ravel(), is_in.ravel())
    assert found > 0.85, "the same mean, and only the spread tells"


def test_an_example_that_every_shadow_has_borrows_the_average_gap():
    shadows, is_in = np.array([[1.0, 0.0], [1.0, 3.0]]), np.array([[True, False], [True, True]])
    mean_in, mean_out = shadow_means(shadows, is_in)
    np.testing.assert_allclose(mean_in, [1.0, 3.0])
    np.testing.assert_allclose(mean_out, [-2.0, 0.0])
    assert np.isfinite(lira_online(np.zeros(2), shadows, is_in)).all()
    assert np.isfinite(standardized(np.zeros(2), shadows, is_in)).all()


def test_scores_that_never_vary_are_finite():
    shadows, is_in = np.ones((4, 3)), np.array([[True] * 3, [False] * 3] * 2)
    for score in (lira_online, lira_offline, standardized):
        assert np.isfinite(score(np.ones(3), shadows, is_in)).all()


def test_one_shadow_model_is_refused():
    with pytest.raises(ConfigError, match="num_shadow_models must lie"):
        lira_online(np.zeros(2), np.zeros((1, 2)), np.zeros((1, 2), dtype=bool))


def slow_rmia(target, shadows, is_in, target_population, shadow_population, a, gamma):
    found = []
    for x in range(len(target)):
        out = [shadows[k, x] for k in range(len(shadows)) if not is_in[k, x]]
        ratio_x = target[x] / (((1 + a) * np.mean(out) + (1 - a)) / 2)
        wins = 0
        for z in range(len(target_population)):
            mean_z = np.mean([shadow_population[k, z] for k in range(len(shadows))])
            ratio_z = target_population[z] / (((1 + a) * mean_z + (1 - a)) / 2)
            wins += ratio_x / ratio_z > gamma
        found.append(wins / len(target_population))
    return found


@pytest.mark.parametrize(("a", "gamma"), [(0.0, 1.0), (0.3, 1.0), (1.0, 2.0)])
def test_rmia_agrees_with_two_loops(a, gamma):
    draws = rng(3)
    target, shadows, is_in = draws.random(20), draws.random((6, 20)), draws.random((6, 20)) < 0.4
    population, shadow_population = draws.random(30), draws.random((6, 30))
    found = rmia_offline(target, shadows, is_in, population, shadow_population, a=a, gamma=gamma)
    np.testing.assert_allclose(found, slow_rmia(target, shadows, is_in, population, shadow_population, a, gamma))


def test_rmia_finds_members_and_nothing_where_nothing_is():
    draws, aucs = rng(4), {}
    for gap in (0.0, 0.25):
        is_in = draws.random((9, 400)) < 0.5
        base = draws.uniform(0.1, 0.6, 400)
        probabilities = np.clip(base + gap * is_in + 0.05 * draws.standard_normal((9, 400)), 0.01, 0.99)
        population = np.clip(draws.uniform(0.1, 0.6, 200) + 0.05 * draws.standard_normal((9, 200)), 0.01, 0.99)
        found = rmia_offline(probabilities[0], probabilities[1:], is_in[1:], population[0], population[1:], a=0.5)
        aucs[gap] = metrics.auc(found, is_in[0])
    assert abs(aucs[0.0] - 0.5) < 0.07
    assert aucs[0.25] > 0.9


def test_tuning_takes_the_a_that_attacks_shadows_best():
    assert tune_rmia(lambda a: -abs(a - 0.3)) == pytest.approx(0.3)
    assert tune_rmia(lambda a: 0.5) == 0.0
