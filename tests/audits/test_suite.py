import numpy as np
import pytest

from hushprompt.audits.shadows import Shadows
from hushprompt.audits.suite import ATTACKS, attack_all, leave_one_out
from hushprompt.errors import ConfigError
from hushprompt.privacy.config import Audience

ATTACKED = (Audience.PUBLIC, Audience.PERSONAL)
LABELS = np.repeat([0, 1, 2], 20)
POPULATION_LABELS = np.repeat([0, 1, 2], 10)


def shadows_of(gap, num_models=16, seed=0):
    """Models whose logit of the true class is `gap` higher for members."""
    draws = np.random.default_rng(seed)
    is_in = draws.random((num_models, len(LABELS))) < 0.5
    hardness = draws.standard_normal(len(LABELS))

    def says(labels, bonus, base):
        logits = 0.5 * draws.standard_normal((num_models, len(labels), 4))
        logits[:, np.arange(len(labels)), labels] += base + bonus
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    candidates = {audience: says(LABELS, gap * is_in, 1 + hardness) for audience in ATTACKED}
    population = {audience: says(POPULATION_LABELS, 0.0, 1.0) for audience in ATTACKED}
    transcript = 10 * hardness + gap * is_in + 0.5 * draws.standard_normal(is_in.shape)
    return Shadows(is_in, candidates, population, transcript)


@pytest.fixture(scope="module")
def leaking():
    return attack_all(shadows_of(1.5), LABELS, POPULATION_LABELS, ATTACKS, seed=1)


def test_every_attack_meets_every_audience(leaking):
    assert set(leaking) == set(ATTACKED)
    for audience, results in leaking.items():
        names = [result.attack for result in results]
        assert names == [
            "LiRA online",
            "LiRA offline",
            "RMIA offline",
            "loss",
            "shadow MLP",
            "gradient cosine",
        ]
        assert len({result.sees for result in results}) == 2, audience
        assert all(result.num_members + result.num_non_members == 16 * 60 for result in results)


def test_what_leaks_is_found_and_calibrated_attacks_find_more(leaking):
    by_name = {result.attack: result for result in leaking[Audience.PERSONAL]}
    for name in ("LiRA online", "LiRA offline", "RMIA offline", "gradient cosine"):
        assert by_name[name].auc.low > 0.8, name
    assert by_name["LiRA online"].auc.value > by_name["loss"].auc.value + 0.05
    assert by_name["loss"].auc.low > 0.5
    assert by_name["LiRA online"].tpr["0.01"].value > 0.2
    assert by_name["LiRA online"].tpr["0.001"].value is None


def test_where_nothing_leaks_nothing_is_found():
    found = attack_all(shadows_of(0.0, seed=3), LABELS, POPULATION_LABELS, ("lira", "loss"), seed=1)
    for result in found[Audience.PUBLIC]:
        assert result.auc.low < 0.5 < result.auc.high, result.attack


def test_the_attacked_model_is_not_its_own_shadow():
    is_in = np.random.default_rng(0).random((5, 7)) < 0.5
    values = np.arange(35.0).reshape(5, 7)
    seen = []

    def score(target, shadows, truth):
        seen.append((target[0], shadows[:, 0].tolist(), len(truth)))
        return target

    assert np.array_equal(leave_one_out(score, values, is_in), values)
    for target, others, count in seen:
        assert target not in others
        assert len(others) == count == 4


def test_a_federation_with_all_candidates_tunes_no_attack():
    few = shadows_of(1.5, num_models=5)
    few.is_in[1] = True
    (found,) = attack_all(few, LABELS, POPULATION_LABELS, ("rmia",), seed=1)[Audience.PUBLIC]
    assert found.auc.value > 0.7


def test_too_few_federations_are_refused():
    few = shadows_of(1.0, num_models=3)
    with pytest.raises(ConfigError, match="--num-shadows must be at least 4, got 3"):
        attack_all(few, LABELS, POPULATION_LABELS, ("lira",), seed=1)
