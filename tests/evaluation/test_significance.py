import itertools
import math

import numpy as np
import pytest
from scipy import stats

from hushprompt.evaluation import significance
from hushprompt.evaluation.significance import compare, holm


def test_sign_flips_agree_with_trying_every_one_and_with_scipy():
    rng = np.random.default_rng(3)
    for count in (3, 5, 8):
        values = rng.normal(0.4, 1.0, size=count)
        flips = [abs(np.mean(values * signs)) for signs in itertools.product((1, -1), repeat=count)]
        slow = np.mean([flip >= abs(values.mean()) - 1e-12 for flip in flips])
        theirs = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
        assert compare(values.tolist(), "sign_flip").p == pytest.approx(slow) == pytest.approx(theirs)


def test_many_seeds_are_sampled_with_the_same_answer():
    values = np.random.default_rng(4).normal(0.3, 1.0, size=20)
    theirs = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=9999).pvalue
    assert compare(values.tolist(), "sign_flip").p == pytest.approx(theirs, abs=0.02)


def test_t_is_students_paired_test_with_its_interval():
    values = [0.01, 0.03, 0.02, 0.00, 0.04]
    got = compare(values, "t")
    theirs = stats.ttest_1samp(values, 0.0)
    interval = theirs.confidence_interval(0.95)
    assert (got.p, got.low, got.high) == pytest.approx((theirs.pvalue, interval.low, interval.high))
    assert (got.mean, got.num_seeds) == (pytest.approx(0.02), 5)


def test_one_seed_and_equal_differences_prove_nothing():
    alone = compare([0.1], "t")
    assert (alone.p, alone.low, alone.high) == (None, -math.inf, math.inf)
    assert compare([0.0, 0.0, 0.0], "t").p == 1.0
    assert compare([0.1, 0.1, 0.1], "sign_flip").p is None


def test_counting_clients_as_independent_would_find_what_is_not_there():
    """Differences share an effect within a seed and have none on average; the seed as unit keeps its level."""
    rng = np.random.default_rng(5)
    worlds, by_seed, by_client = 400, 0, 0
    for _ in range(worlds):
        clients = rng.normal(size=(5, 1)) + 0.5 * rng.normal(size=(5, 10))  # [seeds, clients]
        by_seed += (compare(clients.mean(axis=1).tolist(), "t").p or 1) < 0.05
        by_client += stats.ttest_1samp(clients.ravel(), 0.0).pvalue < 0.05
    assert by_seed / worlds < 0.08
    assert by_client / worlds > 0.3


def test_holm_by_hand():
    assert holm([0.04, 0.01, None, 0.03]) == [pytest.approx(0.06), pytest.approx(0.03), None, pytest.approx(0.06)]
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_sentence_names_test_unit_and_correction():
    for test, words in (("t", "Student's paired t"), ("sign_flip", "at least 0.0625 with 5 seeds")):
        text = significance.description(test, 5)
        assert words in text
        assert "unit of the test: the seed" in text
        assert "Holm" in text
