import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from hushprompt.audits.metrics import auc, is_resolvable, measure, roc_curve, tpr_at
from hushprompt.errors import ConfigError


def rng(seed=0):
    return np.random.default_rng(seed)


def slow_auc(scores, is_in):
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[is_in] for b in scores[~is_in]]
    return np.mean(pairs)


def slow_tpr(scores, is_in, fpr):
    best = 0.0
    for threshold in scores:
        if np.mean(scores[~is_in] >= threshold) <= fpr:
            best = max(best, np.mean(scores[is_in] >= threshold))
    return best


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30),
    st.sampled_from([0.07, 0.1, 0.25, 0.5, 1.0]),
)
def test_area_and_rate_agree_with_counting_pairs_ties_included(pairs, fpr):
    scores, is_in = np.array([float(s) for s, _ in pairs]), np.array([b for _, b in pairs])
    if is_in.all() or not is_in.any():
        with pytest.raises(ConfigError, match="members and non-members"):
            roc_curve(scores, is_in)
        return
    assert auc(scores, is_in) == pytest.approx(slow_auc(scores, is_in))
    found = tpr_at(scores, is_in, fpr)
    assert (found is None) == ((~is_in).sum() * fpr < 1)
    if found is not None:
        assert found == pytest.approx(slow_tpr(scores, is_in, fpr))


def test_the_curve_of_two_gaussians_is_the_known_one():
    is_in = rng(1).random(200_000) < 0.5
    scores = 1.5 * is_in + rng(2).standard_normal(200_000)
    assert auc(scores, is_in) == pytest.approx(norm.cdf(1.5 / np.sqrt(2)), abs=0.005)
    for fpr in (0.1, 0.01, 0.001):
        assert tpr_at(scores, is_in, fpr) == pytest.approx(norm.cdf(1.5 - norm.isf(fpr)), abs=0.012)


def test_no_claim_is_made_below_one_non_member():
    scores, is_in = rng(3).standard_normal((4, 100)), np.arange(400).reshape(4, 100) % 2 == 0
    found = measure("loss", "prompt", scores, is_in, rng(), num_resamples=50)
    assert found.num_non_members == 200
    assert found.tpr["0.01"].value is not None
    assert found.tpr["0.001"] == type(found.tpr["0.001"])(value=None, low=None, high=None)
    assert is_resolvable(100, 0.01)
    assert not is_resolvable(99, 0.01)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    covered = 0
    for seed in range(40):
        draws = rng(100 + seed)
        is_in = draws.random((8, 60)) < 0.5
        # Models differ in how much they leak, and examples in how much they show: both levels of clustering.
        gap = 1.0 + 0.3 * draws.standard_normal((8, 1)) + 0.3 * draws.standard_normal((1, 60))
        scores = gap * is_in + draws.standard_normal((8, 60))
        found = measure("loss", "prompt", scores, is_in, draws, num_resamples=200).auc
        truth = norm.cdf(1.0 / np.sqrt(2 + 2 * 0.09))
        covered += found.low <= truth <= found.high
    assert covered >= 35


def test_shared_models_widen_the_interval():
    draws = rng(5)
    is_in = draws.random((6, 200)) < 0.5
    leak = np.array([0, 0, 0, 2.0, 2.0, 2.0])[:, None]
    scores = leak * is_in + draws.standard_normal((6, 200))
    clustered = measure("loss", "prompt", scores, is_in, rng(), num_resamples=300).auc
    alone = measure("loss", "prompt", scores.reshape(1, -1), is_in.reshape(1, -1), rng(), num_resamples=300).auc
    assert clustered.value == alone.value
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)


def test_the_same_stream_gives_the_same_interval_and_the_curve_runs_from_corner_to_corner():
    scores, is_in = rng(6).standard_normal((3, 50)), rng(7).random((3, 50)) < 0.5
    first, second = (measure("loss", "prompt", scores, is_in, rng(8), num_resamples=64) for _ in range(2))
    assert first == second
    assert first.auc.low < first.auc.value < first.auc.high
    assert first.roc["fpr"][0] == 0.0
    assert (first.roc["fpr"][-1], first.roc["tpr"][-1]) == (1.0, 1.0)
