"""The audit stays below what is proven, finds broken privacy code, and is itself checked by simulation."""

import dataclasses

import numpy as np
import pytest
import torch

from hushprompt.audits.lower_bounds import epsilon_lower_bound
from hushprompt.audits.mechanism_audit import audit_audience, best_guesses, canary_scores
from hushprompt.errors import ConfigError
from hushprompt.methods.class_statistics import ClassStatistics
from hushprompt.privacy.clipping import ClippedSum
from hushprompt.privacy.config import Audience, Channel, PrivacyConfig
from hushprompt.privacy.mechanisms import class_sums
from hushprompt.privacy.mechanisms import gaussian as mechanisms
from hushprompt.privacy.plan import make_plan
from hushprompt.privacy.sampling import DisjointSampler, EqualBatchesSampler, EveryExample, PoissonSampler

NUM_CANARIES = 1000


def plan_of(epsilon, num_rounds=10):
    config = PrivacyConfig(noise_source="seeded", epsilon=epsilon, delta=1e-5, audience=Audience.PUBLIC)
    sampler = DisjointSampler(steps_per_round=1)
    return make_plan(config, sampler, channels=frozenset({Channel.GLOBAL}), num_rounds=num_rounds, client_sizes=[500])


def audit_mechanism(plan, channel, *, num_canaries, rng, norm=1.0):
    """Audit the releases of one channel with gradient canaries."""
    scores, is_in = canary_scores(plan, {channel}, num_canaries=num_canaries, norm=norm, rng=rng)
    return best_guesses(scores, is_in, delta=plan.config.delta, bound="one_run", is_ratio=True)


def audited(epsilon, norm=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return audit_mechanism(plan_of(epsilon), Channel.GLOBAL, num_canaries=NUM_CANARIES, norm=norm, rng=rng)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("norm", [1.0, 1000.0])
def test_the_real_mechanism_never_shows_more_than_is_claimed(epsilon, norm):
    assert plan_of(epsilon).epsilon(Audience.PUBLIC) == pytest.approx(epsilon, rel=1e-4)
    for seed in range(3):
        assert audited(epsilon, norm, seed).epsilon_lower_bound <= epsilon


def test_it_has_power():
    assert audited(8.0).epsilon_lower_bound > 2.0
    assert audited(4.0).epsilon_lower_bound > 0.8
    assert audited(np.inf).epsilon_lower_bound > 4.0  # no noise: every guess is right


def without_noise(value, std, rng):
    return value


def a_tenth_of_the_noise(value, std, rng):
    return value + torch.from_numpy(rng.normal(0.0, std / 10, size=tuple(value.shape))).to(value)


@pytest.mark.parametrize("broken", [without_noise, a_tenth_of_the_noise])
def test_broken_noise_is_caught(monkeypatch, broken):
    monkeypatch.setattr(mechanisms, "add_gaussian", broken)
    assert audited(1.0).epsilon_lower_bound > 1.0


def unclipped(grads, clip_norm):
    return ClippedSum(grads.sum(dim=0), clip_norm)


def clipped_as_a_batch(grads, clip_norm):
    mean = grads.mean(dim=0)
    return ClippedSum(mean * min(1.0, clip_norm / float(mean.norm())) * len(grads), clip_norm)


@pytest.mark.parametrize("broken", [unclipped, clipped_as_a_batch])
def test_broken_clipping_is_caught_by_large_canaries(monkeypatch, broken):
    monkeypatch.setattr(mechanisms, "clipped_sum", broken)
    assert audited(1.0, norm=1000.0).epsilon_lower_bound > 1.0


def test_noise_set_for_a_tenth_of_the_rounds_is_caught():
    plan = plan_of(2.0, num_rounds=1)
    longer = dataclasses.replace(plan, num_rounds=30)
    found = audit_mechanism(longer, Channel.GLOBAL, num_canaries=NUM_CANARIES, rng=np.random.default_rng(0))
    assert found.epsilon_lower_bound > 2.0


def test_the_bound_holds_for_randomized_response_as_often_as_it_says():
    rng, epsilon, too_large = np.random.default_rng(1), 1.0, 0
    for _ in range(200):
        right = rng.binomial(500, 1 / (1 + np.exp(-epsilon)))
        bound = epsilon_lower_bound(num_canaries=500, num_guesses=500, num_correct=right, delta=0.0)
        too_large += bound > epsilon
    assert too_large <= 20  # 10 expected at 95 %


def test_the_bound_is_the_clopper_pearson_limit_where_delta_is_zero():
    from scipy.stats import beta

    low = beta.ppf(0.05, 90, 11)
    found = epsilon_lower_bound(num_canaries=100, num_guesses=100, num_correct=90, delta=0.0)
    assert found == pytest.approx(np.log(low / (1 - low)), abs=1e-6)


def test_a_larger_delta_leaves_a_smaller_bound():
    bounds = [
        epsilon_lower_bound(num_canaries=1000, num_guesses=200, num_correct=190, delta=delta)
        for delta in (0.0, 1e-6, 1e-5, 1e-4)
    ]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] < bounds[0]


def test_guesses_without_information_show_nothing():
    rng = np.random.default_rng(2)
    found = best_guesses(rng.normal(size=2000), rng.random(2000) < 0.5, delta=1e-5)
    assert found.epsilon_lower_bound < 0.3
    assert epsilon_lower_bound(num_canaries=10, num_guesses=0, num_correct=0, delta=0.0) == 0.0


def test_too_few_canaries_are_refused():
    with pytest.raises(ConfigError, match="at least 10, got 3"):
        audit_mechanism(plan_of(1.0), Channel.GLOBAL, num_canaries=3, rng=np.random.default_rng(0))


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0, 4.0, 8.0])
def test_without_sampling_the_bounds_come_near_the_accountants_value_and_never_exceed_it(epsilon):
    for seed in range(3):
        found = audit_audience(
            plan_of(epsilon, num_rounds=5), Audience.PUBLIC, num_canaries=5000, rng=np.random.default_rng(seed)
        )
        one_run, f_dp, gdp = (result.epsilon_lower_bound for result in found)
        assert [result.bound for result in found] == ["one_run", "f_dp_gaussian", "gdp_independent_trials"]
        assert one_run <= f_dp <= epsilon
        assert 0.85 * epsilon - 0.5 < gdp <= epsilon
        assert f_dp > 0.4 * epsilon - 0.4


def both_channels(sampler, epsilon=6.0, **privacy):
    config = PrivacyConfig(
        noise_source="seeded", epsilon=epsilon, delta=1e-5, local_share=0.7, clip_norm_local=0.3, **privacy
    )
    return make_plan(config, sampler, channels=frozenset(Channel), num_rounds=8, client_sizes=[500])


@pytest.mark.parametrize(
    "sampler", [DisjointSampler(steps_per_round=3), PoissonSampler(sampling_prob=0.3, steps_per_round=2)]
)
def test_the_holder_of_a_personal_prompt_learns_more_than_the_public_and_less_than_proven(sampler):
    plan, bounds = both_channels(sampler), {}
    for audience in (Audience.PUBLIC, Audience.PERSONAL):
        found = audit_audience(plan, audience, num_canaries=4000, rng=np.random.default_rng(1))
        bounds[audience] = max(result.epsilon_lower_bound for result in found)
        assert 0 < bounds[audience] <= plan.epsilon(audience)
    assert bounds[Audience.PERSONAL] > bounds[Audience.PUBLIC]


def test_under_replace_one_canaries_are_exchanged_and_the_bound_comes_near_its_claim():
    plan = both_channels(DisjointSampler(steps_per_round=3), neighboring_relation="replace_one")
    found = audit_audience(plan, Audience.PERSONAL, num_canaries=4000, rng=np.random.default_rng(3))
    assert plan.epsilon(Audience.PERSONAL) == pytest.approx(6.0, rel=1e-4)
    assert 4.5 < max(result.epsilon_lower_bound for result in found) <= 6.0
    plan = both_channels(PoissonSampler(sampling_prob=0.3, steps_per_round=2), neighboring_relation="replace_one")
    found = audit_audience(plan, Audience.PERSONAL, num_canaries=4000, rng=np.random.default_rng(3))
    assert 0.5 < found[0].epsilon_lower_bound <= 6.0


def test_noise_for_one_more_or_less_is_caught_where_an_exchange_is_claimed():
    plan = both_channels(DisjointSampler(steps_per_round=3), epsilon=1.0)
    exchanged = dataclasses.replace(plan.config, neighboring_relation="replace_one")
    broken = dataclasses.replace(plan, release_plan=dataclasses.replace(plan.release_plan, config=exchanged))
    found = audit_audience(broken, Audience.PERSONAL, num_canaries=4000, rng=np.random.default_rng(3))
    assert max(result.epsilon_lower_bound for result in found) > 1.0


def test_sampling_that_is_observed_would_break_an_amplified_claim():
    plan = both_channels(PoissonSampler(sampling_prob=0.05), epsilon=1.0)
    honest = audit_audience(plan, Audience.PERSONAL, num_canaries=3000, rng=np.random.default_rng(2))
    assert honest[0].epsilon_lower_bound <= 1.0

    class EveryExample(PoissonSampler):
        def batches(self, num_examples, rng):
            return [np.arange(num_examples)]

    always = dataclasses.replace(plan, sampler=EveryExample(sampling_prob=0.05))
    found = audit_audience(always, Audience.PERSONAL, num_canaries=3000, rng=np.random.default_rng(2))
    assert found[0].epsilon_lower_bound > 1.0


def of_clients(epsilon):
    config = PrivacyConfig(
        noise_source="seeded", epsilon=epsilon, delta=1e-5, audience=Audience.PUBLIC, privacy_unit="client"
    )
    sampler = PoissonSampler(sampling_prob=0.1, steps_per_round=2)
    return make_plan(config, sampler, channels=frozenset(Channel), num_rounds=4, client_sizes=[50] * 20)


@pytest.mark.parametrize("norm", [1.0, 1000.0])
def test_whole_clients_are_audited_where_they_are_the_unit(norm):
    rng = np.random.default_rng(4)
    found = audit_audience(of_clients(4.0), Audience.PUBLIC, num_canaries=1000, norm=norm, rng=rng)
    assert [result.bound for result in found] == ["one_run", "f_dp_gaussian", "gdp_independent_trials"]
    assert 2.0 < max(result.epsilon_lower_bound for result in found) <= 4.0
    assert audit_audience(of_clients(4.0), Audience.PERSONAL, num_canaries=1000, rng=rng) == [], "nothing is claimed"


def test_a_client_whose_examples_are_clipped_one_by_one_is_caught(monkeypatch):
    monkeypatch.setattr(mechanisms, "as_one_contribution", lambda grads: grads)
    found = audit_audience(of_clients(1.0), Audience.PUBLIC, num_canaries=1000, rng=np.random.default_rng(4))
    assert max(result.epsilon_lower_bound for result in found) > 1.0


def test_the_server_is_audited_where_clients_add_the_noise():
    config = PrivacyConfig(noise_source="seeded", epsilon=4.0, delta=1e-5, audience=Audience.SERVER, noise_at="client")
    sampler = DisjointSampler(steps_per_round=1)
    plan = make_plan(config, sampler, channels=frozenset({Channel.GLOBAL}), num_rounds=5, client_sizes=[500])
    found = audit_audience(plan, Audience.SERVER, num_canaries=1000, rng=np.random.default_rng(5))
    assert 2.0 < max(result.epsilon_lower_bound for result in found) <= 4.0


@pytest.mark.parametrize("batch_size", [40, 1000])
def test_nothing_is_measured_where_canaries_are_drawn_with_another_probability_than_is_claimed(batch_size):
    sampler, config = (
        EqualBatchesSampler(batch_size=batch_size),
        PrivacyConfig(noise_source="seeded", epsilon=4.0, delta=1e-5),
    )
    plan = make_plan(config, sampler, channels=frozenset(Channel), num_rounds=5, client_sizes=[4000])
    assert audit_audience(plan, Audience.PERSONAL, num_canaries=1000, rng=np.random.default_rng(0)) == []


def test_sure_guesses_follow_the_size_of_a_ratio_and_its_sign():
    is_in = np.arange(100) < 20  # far from half are in
    ratios = np.where(is_in, 5.0, -0.1)
    by_ratio = best_guesses(ratios, is_in, delta=1e-5, is_ratio=True)
    assert by_ratio.num_correct == by_ratio.num_guesses
    assert by_ratio.epsilon_lower_bound > best_guesses(ratios, is_in, delta=1e-5).epsilon_lower_bound


def test_an_audience_that_sees_nothing_has_no_audit():
    config = PrivacyConfig(noise_source="seeded", epsilon=1.0, delta=1e-5)
    plan = make_plan(
        config, DisjointSampler(steps_per_round=1), channels=frozenset({Channel.LOCAL}), num_rounds=2, client_sizes=[9]
    )
    assert audit_audience(plan, Audience.PUBLIC, num_canaries=1000, rng=np.random.default_rng(0)) == []


def of_class_sums(epsilon, **privacy):
    config = PrivacyConfig(noise_source="seeded", epsilon=epsilon, delta=1e-5, audience=Audience.PUBLIC, **privacy)
    return make_plan(
        config,
        EveryExample(steps_per_round=len(ClassStatistics().parts)),
        channels=ClassStatistics.channels,
        num_rounds=1,
        client_sizes=[500],
        mechanism=ClassStatistics.mechanism,
        parts=ClassStatistics().parts,
    )


def audited_class_sums(epsilon, num_canaries=100_000, **privacy):
    plan = of_class_sums(epsilon, **privacy)
    rng, confidence = np.random.default_rng(1), 1 - 0.05 / 4  # so that all four hold together with 95 %
    found = audit_audience(plan, Audience.PUBLIC, num_canaries=num_canaries, rng=rng, confidence=confidence)
    return {result.bound: result.epsilon_lower_bound for result in found}


@pytest.mark.parametrize("epsilon", [1.0, 2.0, 4.0, 8.0])
def test_a_release_of_class_sums_shows_nearly_what_is_claimed_and_no_more(epsilon):
    assert of_class_sums(epsilon).epsilon(Audience.PUBLIC) == pytest.approx(epsilon, rel=1e-4)
    found = audited_class_sums(epsilon)
    assert max(found.values()) <= epsilon
    assert epsilon / 1.3 <= found["gdp_independent_trials"]


def test_an_exchange_of_class_sums_shows_no_more_than_is_claimed():
    found = audited_class_sums(4.0, 5000, neighboring_relation="replace_one")
    assert 2.5 < max(found.values()) <= 4.0


@pytest.mark.parametrize("broken", [(1.0, 0.95), (0.05, 1.9)])
def test_parts_that_are_more_than_the_whole_are_caught(broken):
    plan = of_class_sums(2.0)
    more = dataclasses.replace(plan, release_plan=dataclasses.replace(plan.release_plan, parts=broken))
    found = audit_audience(more, Audience.PUBLIC, num_canaries=20_000, rng=np.random.default_rng(1))
    assert max(result.epsilon_lower_bound for result in found) > 2.0


def test_class_sums_with_rows_that_are_not_clipped_are_caught(monkeypatch):
    def unclipped(rows, labels, num_classes, clip_norm):
        return ClippedSum(rows.new_zeros(num_classes, rows.shape[1]).index_add_(0, labels, rows), clip_norm)

    monkeypatch.setattr(class_sums, "clipped_class_sums", unclipped)
    found = audit_audience(
        of_class_sums(1.0), Audience.PUBLIC, num_canaries=1000, norm=100.0, rng=np.random.default_rng(0)
    )
    assert max(result.epsilon_lower_bound for result in found) > 1.0
