"""What a budget costs and what noise proves, before there is a run: the two directions agree."""

import math

import pytest

from hushprompt.errors import ConfigError, PrivacyError
from hushprompt.privacy.calibration import plan_training
from hushprompt.privacy.config import Audience, Channel, PrivacyConfig
from hushprompt.privacy.plan import make_plan
from hushprompt.privacy.sampling import PoissonSampler


@pytest.mark.parametrize("settings", [{}, {"sampling_prob": 0.1, "steps_per_round": 2}, {"relation": "replace_one"}])
def test_noise_of_a_budget_proves_the_budget(settings):
    planned = plan_training(epsilon=4.0, rounds=10, local_share=0.3, **settings)
    noise = {str(channel): z for channel, z in planned.release_plan.noise_multipliers.items()}
    proven = plan_training(noise_multipliers=noise, rounds=10, **settings)
    assert proven.guarantees()[Audience.PERSONAL].epsilon == planned.epsilon(Audience.PERSONAL) <= 4.0


def test_it_is_the_plan_of_a_run_with_these_settings():
    config = PrivacyConfig(epsilon=2.0, delta=1e-6, audience=Audience.PUBLIC, noise_at="client")
    expected = make_plan(
        config, PoissonSampler(sampling_prob=0.2), channels=frozenset(Channel), num_rounds=7, client_sizes=[1, 1]
    )
    given = {"epsilon": 2.0, "delta": 1e-6, "audience": "public", "noise_at": "client", "sampling_prob": 0.2}
    assert plan_training(**given, rounds=7, clients=2) == expected


def test_one_number_is_the_noise_of_every_channel():
    plan = plan_training(noise_multipliers=3.0, rounds=5, channels=frozenset({Channel.GLOBAL}))
    assert plan.release_plan.noise_multipliers == {Channel.GLOBAL: 3.0}
    assert plan_training(noise_multipliers=0.0, rounds=5).epsilon(Audience.PUBLIC) == math.inf


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "either epsilon"),
        ({"epsilon": 1.0, "noise_multipliers": 1.0}, "either epsilon"),
        ({"noise_multipliers": {"global": 1.0}}, r"give the noise of \['local'\] too"),
        ({"noise_multipliers": {"gobal": 1.0}}, r"given for \['gobal'\]"),
        ({"epsilon": 1.0, "audience": "everyone"}, "audience"),
        ({"epsilon": 1.0, "unit": "client", "clients": 200_000, "audience": "public"}, "below 1 / "),
    ],
)
def test_what_is_not_a_training_is_refused(given, message):
    with pytest.raises((ConfigError, PrivacyError), match=message):
        plan_training(rounds=5, **given)
