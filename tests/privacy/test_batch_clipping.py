import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hushprompt.errors import ConfigError, PrivacyError
from hushprompt.privacy import accounting
from hushprompt.privacy.budget import published_noise_multiplier
from hushprompt.privacy.config import Audience, Channel, PrivacyConfig
from hushprompt.privacy.mechanisms.batch_clipping import clipped_means
from hushprompt.privacy.plan import make_plan
from hushprompt.privacy.release_plan import BatchClipping, batch_sensitivity
from hushprompt.privacy.sampling import DisjointSampler, PoissonSampler

BOTH = frozenset({Channel.LOCAL, Channel.GLOBAL})
PAPER = BatchClipping(num_local_blocks=2, calibration="paper")
PROVEN = BatchClipping(num_local_blocks=2, calibration="accountant")
ROUNDS = DisjointSampler(steps_per_round=10)  # 320 examples: batches of 32


def plan_of(clipping=PAPER, sampler=ROUNDS, channels=BOTH, num_rounds=100, sizes=(320, 200), **privacy):
    privacy = {"noise_source": "seeded", "delta": 1e-5, "clip_norm_local": 10.0, "clip_norm_global": 10.0, **privacy}
    return make_plan(
        PrivacyConfig(**privacy),
        sampler,
        channels=channels,
        num_rounds=num_rounds,
        client_sizes=list(sizes),
        batch_clipping=clipping,
    )


vectors = st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3)


@given(st.lists(vectors, min_size=2, max_size=2), st.lists(vectors, min_size=2, max_size=2), st.floats(0.01, 100))
def test_any_two_batches_differ_by_no_more_than_the_sensitivity(first, second, clip_norm):
    left, right = (clipped_means([torch.tensor(block) for block in means], clip_norm) for means in (first, second))
    assert left.sensitivity == batch_sensitivity(clip_norm, 2)
    assert float((left.value - right.value).norm()) <= left.sensitivity * (1 + 1e-6)


@pytest.mark.parametrize("relation", ["add", "replace"])
def test_one_example_really_moves_a_clipped_mean_by_the_whole_sensitivity(relation):
    others = torch.full((31, 4), 50.0)
    outlier = torch.full((1, 4), -1e7)
    batch = torch.cat([others, outlier]) if relation == "add" else torch.cat([others[1:], outlier])
    means = [clipped_means([rows.mean(dim=0)] * 2, 10.0) for rows in (others, batch)]
    moved = float((means[0].value - means[1].value).norm())
    assert moved == pytest.approx(means[0].sensitivity, rel=1e-5)
    assert moved > 60 * 10.0 / 32  # the sensitivity C / B that the formula assumes


def test_a_block_that_is_no_number_becomes_zero_and_a_zero_block_stays():
    clipped = clipped_means([torch.tensor([math.nan, 1.0]), torch.zeros(2), torch.tensor([math.inf, 0.0])], 1.0)
    assert torch.equal(clipped.value, torch.zeros(6))
    with pytest.raises(ConfigError, match="clip_norm must be > 0"):
        clipped_means([torch.ones(2)], 0.0)


# Claimed epsilon, and what is proven for batches of 32, 100 rounds, delta 1e-5: of u and v, and of all three.
@pytest.mark.parametrize(
    ("nominal", "local", "both"), [(0.4, 102, 140), (0.2, 36, 48), (0.1, 14, 19), (0.05, 6.1, 7.8), (0.01, 1.0, 1.2)]
)
def test_the_proven_epsilon_of_the_published_noise(nominal, local, both):
    for channels, expected in ((frozenset({Channel.LOCAL}), local), (BOTH, both)):
        proven = plan_of(channels=channels, epsilon=nominal).epsilon(Audience.PERSONAL)
        assert proven == pytest.approx(expected, rel=0.05)
        assert proven > 50 * nominal


def test_the_noise_is_the_papers_and_the_epsilon_that_of_an_accountant():
    plan = plan_of(epsilon=0.4)
    std = math.sqrt(100 * math.log(1e5)) / 0.4 * 10 / 32
    for channel, blocks in ((Channel.LOCAL, 2), (Channel.GLOBAL, 1)):
        assert plan.release_plan.sensitivity(channel) == pytest.approx(20 * math.sqrt(blocks))
        assert plan.release_plan.noise_multipliers[channel] * plan.release_plan.sensitivity(channel) == pytest.approx(
            std
        )
    mu = math.sqrt(100) * math.sqrt(2 * 20**2 + 20**2) / std
    assert plan.epsilon(Audience.PERSONAL) == pytest.approx(accounting._gdp_epsilon(mu, 1e-5), rel=1e-6)


@pytest.mark.parametrize("relation", ["add_remove", "replace_one"])
def test_both_relations_have_the_same_sensitivity_and_epsilon(relation):
    plan = plan_of(epsilon=0.4, neighboring_relation=relation)
    assert plan.epsilon(Audience.PERSONAL) == plan_of(epsilon=0.4).epsilon(Audience.PERSONAL)
    assert f"({relation})" in plan.guarantees()[Audience.PERSONAL].statement()


def test_the_statement_names_the_nominal_epsilon_as_such_and_claims_the_proven_one():
    statement = plan_of(epsilon=0.4).guarantees()[Audience.PERSONAL].statement()
    assert statement.startswith("epsilon = 140")
    assert "worst-case sensitivity, noise by the paper's formula for a nominal epsilon of 0.4" in statement


@pytest.mark.parametrize("sampler", [ROUNDS, PoissonSampler(sampling_prob=0.1)])
def test_a_budget_can_be_kept_with_clipped_batches_at_the_price_of_more_noise(sampler):
    honest = plan_of(clipping=PROVEN, sampler=sampler, epsilon=4.0, num_rounds=20)
    assert 4.0 * 0.99 < honest.epsilon(Audience.PERSONAL) <= 4.0
    examples = plan_of(clipping=None, sampler=sampler, epsilon=4.0, num_rounds=20)
    batch_size = sampler.expected_batch_size(320)
    on_mean = honest.release_plan.noise_multipliers[Channel.GLOBAL] * honest.release_plan.sensitivity(Channel.GLOBAL)
    assert on_mean > 10 * examples.release_plan.noise_multipliers[Channel.GLOBAL] * 10.0 / batch_size


def test_means_are_divided_by_the_number_of_clients_and_not_of_examples():
    plan = plan_of(epsilon=math.inf)
    rng = np.random.default_rng(0)
    for channel in Channel:
        for num_clients in (1, 2):
            mechanism = plan.mechanism(allowed=channel, expected_count=52.0, rng=rng, num_clients=num_clients)
            assert mechanism.expected_count == num_clients


def test_a_method_makes_the_sums_that_it_declares():
    rng = np.random.default_rng(0)
    batches, examples = (
        plan_of(clipping=clipping, epsilon=1.0).mechanism(allowed=Channel.LOCAL, expected_count=1.0, rng=rng)
        for clipping in (PAPER, None)
    )
    with pytest.raises(PrivacyError, match="planned for clipped batches"):
        batches.clip(Channel.LOCAL, torch.ones(1, 2))
    with pytest.raises(PrivacyError, match="planned for clipped examples"):
        examples.clip_batch(Channel.LOCAL, torch.ones(2))
    with pytest.raises(PrivacyError, match="planned for"):  # one block instead of two
        batches.release(Channel.LOCAL, batches.clip_batch(Channel.LOCAL, torch.ones(2)))


def test_the_formula_knows_no_batch_size():
    assert published_noise_multiplier(nominal_epsilon=0.01, delta=1e-5, num_rounds=100) == pytest.approx(3393, rel=1e-3)
    with pytest.raises(ConfigError, match="nominal_epsilon must be > 0"):
        published_noise_multiplier(nominal_epsilon=0.0, delta=1e-5, num_rounds=100)
