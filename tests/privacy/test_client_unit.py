"""Client-level privacy: one client moves the sum by at most the clip norm, in every step; nothing else is claimed."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from hushprompt.errors import PrivacyError
from hushprompt.privacy import accounting
from hushprompt.privacy.clipping import add_up
from hushprompt.privacy.config import Audience, Channel, PrivacyConfig
from hushprompt.privacy.plan import make_plan
from hushprompt.privacy.sampling import DisjointSampler, PoissonSampler

GLOBAL = frozenset({Channel.GLOBAL})
BOTH = frozenset(Channel)
values = st.floats(-1e6, 1e6, width=32)
clients = st.lists(
    npst.arrays("float32", st.tuples(st.integers(0, 5), st.just(3)), elements=values), min_size=1, max_size=4
)


def plan_of(channels=BOTH, sampler=None, num_rounds=10, num_clients=20, **privacy):
    config = PrivacyConfig(
        **{"noise_source": "seeded", "privacy_unit": "client", "audience": Audience.PUBLIC, "epsilon": 4.0, **privacy}
    )
    sampler = sampler or PoissonSampler(sampling_prob=0.1, steps_per_round=3)
    return make_plan(config, sampler, channels=channels, num_rounds=num_rounds, client_sizes=[50] * num_clients)


def server_of(plan, num_clients=20):
    return plan.mechanism(
        allowed=Channel.GLOBAL, expected_count=77.0, rng=np.random.default_rng(0), num_clients=num_clients
    )


@given(clients, st.floats(1e-2, 1e2), st.integers(0, 3))
def test_all_data_of_one_client_move_the_sum_by_at_most_the_clip_norm(data, clip_norm, which):
    plan = plan_of(clip_norm_global=clip_norm)
    client = plan.mechanism(allowed=Channel.LOCAL, expected_count=5.0, rng=np.random.default_rng(0))
    sums = [client.clip(Channel.GLOBAL, torch.from_numpy(rows).double()) for rows in data]
    gone = client.clip(Channel.GLOBAL, torch.zeros(0, 3, dtype=torch.float64))
    which %= len(sums)
    whole, rest = add_up(sums), add_up([gone if i == which else part for i, part in enumerate(sums)])
    assert whole.sensitivity == clip_norm
    assert (whole.value - rest.value).norm() <= clip_norm * (1 + 1e-9)


def test_a_clients_contribution_is_its_mean_gradient():
    client = plan_of(clip_norm_global=10.0).mechanism(
        allowed=Channel.LOCAL, expected_count=5.0, rng=np.random.default_rng(0)
    )
    rows = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    torch.testing.assert_close(client.clip(Channel.GLOBAL, rows).value, torch.tensor([2.0, 4.0]))


def test_the_divisor_is_the_number_of_clients():
    plan = plan_of(epsilon=math.inf)
    server = server_of(plan, num_clients=4)
    summed = server.clip(Channel.GLOBAL, torch.tensor([[0.6, 0.8]]))
    torch.testing.assert_close(server.release(Channel.GLOBAL, summed).value, torch.tensor([0.15, 0.2]))


@pytest.mark.parametrize(
    "sampler", [PoissonSampler(sampling_prob=0.01, steps_per_round=3), DisjointSampler(steps_per_round=3)]
)
def test_a_client_takes_part_in_every_step_and_nothing_is_amplified(sampler):
    releases = plan_of(sampler=sampler).releases(Audience.PUBLIC)
    assert releases.num_steps == 30
    assert releases.sampling_prob == 1.0


@pytest.mark.parametrize("relation", ["add_remove", "replace_one"])
@pytest.mark.parametrize("channels", [GLOBAL, BOTH])
def test_the_public_target_is_met_by_the_global_noise_alone(channels, relation):
    plan = plan_of(channels, neighboring_relation=relation)
    assert 4.0 * 0.999 < plan.epsilon(Audience.PUBLIC) <= 4.0
    z = accounting.calibrate(target_epsilon=4.0, delta=1e-5, num_steps=30, sampling_prob=1.0, relation=relation)
    assert plan.release_plan.noise_multipliers[Channel.GLOBAL] == pytest.approx(z)


def test_personal_prompts_have_no_guarantee_and_the_statement_says_why():
    for plan in (plan_of(), plan_of(epsilon=None, noise_multiplier_local=50.0, noise_multiplier_global=50.0)):
        assert plan.epsilon(Audience.PERSONAL) == math.inf
        statement = plan.guarantees()[Audience.PERSONAL].statement()
        assert "No guarantee (epsilon = inf, no client-level protection: a personal prompt is made from" in statement
        assert "one client with all of its examples" in statement


def test_a_method_without_personal_prompts_protects_whole_clients_from_everyone():
    plan = plan_of(GLOBAL, audience=Audience.PERSONAL)
    assert plan.epsilon(Audience.PERSONAL) == plan.epsilon(Audience.PUBLIC) <= 4.0


def test_the_statement_names_the_unit_and_claims_no_amplification():
    statement = plan_of().guarantees()[Audience.PUBLIC].statement()
    assert "one client's whole data more or less (add_remove)" in statement
    assert "no amplification claimed" in statement


def test_a_personal_budget_is_refused():
    with pytest.raises(PrivacyError, match=r'Use privacy\.audience = "public"'):
        plan_of(audience=Audience.PERSONAL)


def test_delta_is_checked_against_the_number_of_clients():
    assert plan_of(delta=1 / 40, num_clients=20).epsilon(Audience.PUBLIC) <= 4.0  # 50 examples each would refuse it
    with pytest.raises(PrivacyError, match=r"1 / \(number of clients\) = 1 / 20"):
        plan_of(delta=1 / 20, num_clients=20)
