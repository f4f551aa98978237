import math

import numpy as np
import pytest
import torch

from hushprompt.errors import PrivacyError
from hushprompt.privacy import accounting
from hushprompt.privacy.clipping import ClippedSum
from hushprompt.privacy.config import Audience, Channel, PrivacyConfig
from hushprompt.privacy.plan import make_plan
from hushprompt.privacy.sampling import DisjointSampler, PoissonSampler

BOTH = frozenset({Channel.LOCAL, Channel.GLOBAL})
POISSON = PoissonSampler(sampling_prob=0.1)


def plan_of(channels=BOTH, sampler=POISSON, num_rounds=20, sizes=(400, 300), **privacy):
    return make_plan(
        PrivacyConfig(**privacy), sampler, channels=channels, num_rounds=num_rounds, client_sizes=list(sizes)
    )


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("sampler", [POISSON, DisjointSampler(steps_per_round=5)])
@pytest.mark.parametrize("audience", list(Audience))
def test_the_target_is_met_however_it_is_split_and_the_public_is_charged_for_both_releases(share, sampler, audience):
    plan = plan_of(sampler=sampler, epsilon=4.0, local_share=share, audience=audience, noise_at="client")
    for who in Audience:
        assert 4.0 * 0.99 < plan.epsilon(who) <= 4.0


def test_the_split_is_the_one_asked_for():
    plan = plan_of(epsilon=4.0, local_share=0.8)
    local, shared = (plan.release_plan.noise_multipliers[c] ** -2 for c in (Channel.LOCAL, Channel.GLOBAL))
    assert local / (local + shared) == pytest.approx(0.8)


@pytest.mark.parametrize("channel", list(Channel))
def test_one_channel_alone_gets_the_whole_budget(channel):
    plan = plan_of(channels=frozenset({channel}), epsilon=4.0)
    alone = accounting.calibrate(target_epsilon=4.0, delta=1e-5, num_steps=20, sampling_prob=0.1, relation="add_remove")
    assert plan.release_plan.noise_multipliers == {channel: pytest.approx(alone)}
    assert plan.epsilon(Audience.PUBLIC) == (0.0 if channel is Channel.LOCAL else pytest.approx(4.0, rel=1e-2))


def test_every_step_of_every_round_is_counted():
    one = plan_of(epsilon=None, noise_multiplier_local=1.0, noise_multiplier_global=1.0)
    three = plan_of(
        sampler=PoissonSampler(sampling_prob=0.1, steps_per_round=3),
        epsilon=None,
        noise_multiplier_local=1.0,
        noise_multiplier_global=1.0,
    )
    assert one.releases(Audience.PERSONAL).num_steps == 20
    assert three.releases(Audience.PERSONAL).num_steps == 60
    assert three.releases(Audience.PERSONAL, num_rounds=2).num_steps == 6


def test_two_releases_cost_more_than_one():
    plan = plan_of(epsilon=None, noise_multiplier_local=1.0, noise_multiplier_global=1.0)
    assert plan.releases(Audience.PERSONAL).noise_multiplier == pytest.approx(1 / math.sqrt(2))
    alone = plan_of(
        channels=frozenset({Channel.GLOBAL}), epsilon=None, noise_multiplier_local=1.0, noise_multiplier_global=1.0
    )
    assert plan.epsilon(Audience.PERSONAL) > alone.epsilon(Audience.PERSONAL)


def test_epsilon_grows_with_the_rounds():
    plan = plan_of(epsilon=8.0)
    values = [plan.epsilon(Audience.PERSONAL, rounds) for rounds in (0, 1, 10, 20)]
    assert values[0] == 0
    assert values == sorted(values)


def test_infinite_epsilon_clips_and_adds_no_noise():
    plan = plan_of(epsilon=math.inf)
    assert set(plan.release_plan.noise_multipliers.values()) == {0.0}
    assert plan.epsilon(Audience.PERSONAL) == math.inf
    mechanism = plan.mechanism(allowed=Channel.LOCAL, expected_count=2.0, rng=np.random.default_rng(0))
    summed = mechanism.clip(Channel.LOCAL, torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(mechanism.release(Channel.LOCAL, summed).value, torch.tensor([0.3, 0.4]))


def test_a_release_is_the_sum_plus_planned_noise_over_the_public_count():
    plan = plan_of(epsilon=None, noise_multiplier_local=2.0, noise_multiplier_global=5.0, clip_norm_local=0.5)
    mechanism = plan.mechanism(allowed=Channel.LOCAL, expected_count=10.0, rng=np.random.default_rng(0))
    summed = ClippedSum(torch.full((50_000,), 7.0), 0.5)
    released = mechanism.release(Channel.LOCAL, summed).value
    assert float(released.mean()) == pytest.approx(0.7, abs=5 * 0.1 / 50_000**0.5)
    assert float(released.std()) == pytest.approx(2.0 * 0.5 / 10, rel=0.02)


def test_a_party_releases_on_its_own_channel_only():
    mechanism = plan_of().mechanism(allowed=Channel.LOCAL, expected_count=1.0, rng=np.random.default_rng(0))
    summed = mechanism.clip(Channel.GLOBAL, torch.ones(1, 2))
    with pytest.raises(PrivacyError, match="releases on the local channel only"):
        mechanism.release(Channel.GLOBAL, summed)


def test_a_channel_that_the_method_did_not_declare_is_refused():
    plan = plan_of(channels=frozenset({Channel.GLOBAL}))
    mechanism = plan.mechanism(allowed=Channel.LOCAL, expected_count=1.0, rng=np.random.default_rng(0))
    with pytest.raises(PrivacyError, match="would not be accounted for"):
        mechanism.clip(Channel.LOCAL, torch.ones(1, 2))


def test_a_sum_clipped_to_another_norm_is_refused():
    mechanism = plan_of().mechanism(allowed=Channel.LOCAL, expected_count=1.0, rng=np.random.default_rng(0))
    with pytest.raises(PrivacyError, match=r"sensitivity 3\.0"):
        mechanism.release(Channel.LOCAL, ClippedSum(torch.zeros(2), 3.0))


@pytest.mark.parametrize(
    ("privacy", "message"),
    [
        ({"delta": 1 / 400}, "largest client"),
        ({"delta": 0.0}, "delta must be"),
        ({"epsilon": -1.0}, "epsilon must be > 0"),
        ({"epsilon": 1.0, "noise_multiplier_local": 1.0}, "exclude each other"),
        ({"epsilon": None}, "or both noise_multiplier_local"),
        ({"local_share": 1.0}, "local_share"),
        ({"clip_norm_local": 0.0}, "clip_norm_local must be > 0"),
        ({"clip_norm_global": math.inf}, "finite"),
    ],
)
def test_a_setting_outside_the_theorem_is_refused(privacy, message):
    with pytest.raises(ValueError, match=message):
        plan_of(**privacy)


def test_a_public_budget_for_a_method_that_publishes_nothing_is_refused():
    with pytest.raises(PrivacyError, match="personal prompts only"):
        plan_of(channels=frozenset({Channel.LOCAL}), audience=Audience.PUBLIC)


def test_every_audience_has_a_guarantee():
    guarantees = plan_of(epsilon=4.0).guarantees()
    assert set(guarantees) == {Audience.PUBLIC, Audience.PERSONAL}, "a server that adds the noise has none"
    assert guarantees[Audience.PERSONAL].epsilon <= 4.0


def test_a_server_that_gets_noisy_uploads_has_a_guarantee_and_may_be_the_target():
    plan = plan_of(epsilon=4.0, noise_at="client", local_share=0.25)
    guarantees = plan.guarantees()
    assert set(guarantees) == set(Audience)
    assert guarantees[Audience.SERVER].epsilon == guarantees[Audience.PUBLIC].epsilon <= 4.0
    target = plan_of(epsilon=4.0, noise_at="client", audience=Audience.SERVER)
    assert 4.0 * 0.99 < target.epsilon(Audience.SERVER) <= 4.0
    assert target.epsilon(Audience.PERSONAL) == target.epsilon(Audience.SERVER)
    with pytest.raises(PrivacyError, match=r'"server" needs privacy.noise_at = "shares" or "client"'):
        plan_of(epsilon=4.0, audience=Audience.SERVER)
    with pytest.raises(PrivacyError, match="personal prompts only"):
        plan_of(channels=frozenset({Channel.LOCAL}), audience=Audience.SERVER, noise_at="client")
