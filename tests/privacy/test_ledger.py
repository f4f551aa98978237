"""Charges come before releases, retries never go uncounted, and the budget ends training in time."""

import math

import pytest

from hushprompt.errors import ConfigError, PrivacyError
from hushprompt.privacy.config import Audience, Channel, PrivacyConfig
from hushprompt.privacy.ledger import Account, Charge, Ledger, accounts, why_not
from hushprompt.privacy.plan import make_plan
from hushprompt.privacy.release_plan import BatchClipping
from hushprompt.privacy.sampling import DisjointSampler, EqualBatchesSampler, PoissonSampler

BOTH = frozenset(Channel)


def plan_of(sampler=None, num_rounds=20, **privacy):
    sampler = sampler or PoissonSampler(sampling_prob=0.1, steps_per_round=2)
    return make_plan(
        PrivacyConfig(**{"noise_source": "seeded", **privacy}),
        sampler,
        channels=BOTH,
        num_rounds=num_rounds,
        client_sizes=[400, 300, 10],
    )


def given_noise(z=2.0, **privacy):
    return plan_of(epsilon=None, noise_multiplier_local=z, noise_multiplier_global=z, **privacy)


def charged(*rounds):
    ledger = Ledger()
    for round_index, clients in enumerate(rounds):
        ledger = ledger.with_charge(Charge(round_index, clients))
    return ledger


def test_each_client_is_charged_for_the_rounds_it_takes_part_in():
    ledger = charged((0, 1), (0,), (0, 2))
    assert [ledger.rounds(client_id) for client_id in range(4)] == [3, 1, 1, 0]
    assert ledger.most_rounds == 3


def test_a_late_joiner_starts_at_zero_and_has_its_own_epsilon():
    plan = given_noise()
    ledger = charged((0, 1), (0, 1), (0, 1, 2))
    found = accounts(plan, ledger)
    assert [account.clients for account in found] == [(0, 1), (2,)]
    assert [account.num_releases for account in found] == [6, 2]
    assert found[1] == Account(
        clients=(2,),
        num_rounds=1,
        num_releases=2,
        sampling_prob=0.1,
        epsilon={str(who): plan.epsilon(who, 1) for who in plan.audiences},
    )
    assert found[0].epsilon["personal"] == plan.epsilon(Audience.PERSONAL, 3) > found[1].epsilon["personal"]


def test_a_replay_bit_for_bit_is_charged_once_and_one_with_fresh_noise_again():
    ledger = charged((0, 1))
    assert ledger.due(0, (0, 1), is_replay_exact=True) is None
    assert ledger.due(0, (0, 1, 2), is_replay_exact=True) == Charge(0, (2,))
    again = ledger.due(0, (0, 1), is_replay_exact=False)
    assert again == Charge(0, (0, 1))
    assert ledger.with_charge(again).rounds(0) == 2
    assert ledger.due(1, (0,), is_replay_exact=True) == Charge(1, (0,))


def test_a_client_is_not_charged_twice_in_one_charge():
    with pytest.raises(PrivacyError, match="twice"):
        Ledger().with_charge(Charge(0, (1, 1)))


@pytest.mark.parametrize("audience", [Audience.PUBLIC, Audience.PERSONAL])
@pytest.mark.parametrize("sampler", [None, DisjointSampler(steps_per_round=3)])
def test_training_ends_before_the_limit_is_passed_and_not_a_round_earlier(audience, sampler):
    plan = given_noise(z=3.0, sampler=sampler, max_epsilon=2.0, audience=audience)
    ledger, done = Ledger(), 0
    while why_not(plan, ledger, Charge(done, (0, 1))) is None:
        ledger = ledger.with_charge(Charge(done, (0, 1)))
        done += 1
        assert done < 1000
    assert plan.epsilon(audience, done) <= 2.0 < plan.epsilon(audience, done + 1)
    assert f"round {done + 1} would bring client 0" in why_not(plan, ledger, Charge(done, (0, 1)))


def test_the_client_that_took_part_the_most_decides():
    plan = given_noise(z=3.0, max_epsilon=2.0)
    ledger = Ledger()
    while why_not(plan, ledger, Charge(0, (1,))) is None:
        ledger = ledger.with_charge(Charge(0, (1,)))
    assert why_not(plan, ledger, Charge(0, (0, 2))) is None
    assert "client 1" in why_not(plan, ledger, Charge(0, (0, 1, 2)))


def test_a_target_is_a_limit_of_its_own_so_wasted_rounds_end_training_earlier():
    plan = plan_of(epsilon=2.0, num_rounds=4)
    ledger = charged(*[(0, 1, 2)] * 4)
    assert ledger.most_rounds == 4
    assert why_not(plan, charged(*[(0, 1, 2)] * 3), Charge(3, (0, 1, 2))) is None
    assert "above 2" in why_not(plan, ledger, Charge(3, (0, 1, 2)))


def test_without_a_budget_nothing_is_refused():
    assert why_not(plan_of(epsilon=math.inf), charged((0,), (0,)), Charge(2, (0,))) is None


@pytest.mark.parametrize(
    ("privacy", "message"),
    [
        ({"max_epsilon": 0.0}, "max_epsilon must be > 0"),
        ({"max_epsilon": math.inf}, "finite"),
        ({"max_epsilon": 2.0, "epsilon": math.inf}, "cannot be kept without noise"),
    ],
)
def test_an_impossible_limit_is_refused(privacy, message):
    with pytest.raises(ConfigError, match=message):
        PrivacyConfig(**privacy)


def test_clients_of_different_size_have_guarantees_of_their_own_and_the_smallest_sets_the_noise():
    sampler = EqualBatchesSampler(batch_size=5, steps_per_round=2)
    plan = plan_of(sampler=sampler, epsilon=2.0, num_rounds=4)  # 400, 300 and 10 examples
    ledger = charged(*[(0, 1, 2)] * 4)
    found = accounts(plan, ledger)
    assert [account.clients for account in found] == [(2,), (1,), (0,)]
    assert [account.sampling_prob for account in found] == [0.5, 5 / 300, 5 / 400]
    spent = [account.epsilon["personal"] for account in found]
    assert 1.99 < spent[0] <= 2.0
    assert spent == sorted(spent, reverse=True)
    assert plan.epsilon(Audience.PERSONAL) == spent[0]
    assert "probability 0.5 at the worst client, of 10 examples" in plan.guarantees()[Audience.PERSONAL].statement()


def test_each_clients_own_sampling_decides_when_it_has_to_stop():
    sampler = EqualBatchesSampler(batch_size=5)
    plan = given_noise(z=1.0, sampler=sampler, max_epsilon=3.0)
    ledger = Ledger()
    while why_not(plan, ledger, Charge(0, (2,))) is None:
        ledger = ledger.with_charge(Charge(0, (0, 1, 2)))
    assert why_not(plan, ledger, Charge(0, (0, 1))) is None
    assert "client 2" in why_not(plan, ledger, Charge(0, (0, 1, 2)))


@pytest.mark.parametrize(("calibration", "limit"), [("paper", None), ("accountant", 2.0)])
def test_an_epsilon_that_noise_is_only_called_by_is_no_limit(calibration, limit):
    clipping = BatchClipping(num_local_blocks=2, calibration=calibration)
    config = PrivacyConfig(epsilon=2.0, noise_source="seeded")
    plan = make_plan(
        config, DisjointSampler(), channels=BOTH, num_rounds=5, client_sizes=[100], batch_clipping=clipping
    )  # fmt: skip
    assert plan.limit == limit
    assert why_not(plan, charged((0,)), Charge(1, (0,))) is None
    assert (plan.epsilon(Audience.PERSONAL) > 2.0) == (calibration == "paper")


@pytest.mark.parametrize("setting", [{"noise_source": "secure"}, {"adaptive_quantile": 0.5}])
def test_clipped_batches_are_for_comparison_only(setting):
    clipping = BatchClipping(num_local_blocks=2, calibration="accountant")
    with pytest.raises(PrivacyError, match="comparison only"):
        make_plan(
            PrivacyConfig(**{"noise_source": "seeded", **setting}),
            DisjointSampler(), channels=BOTH, num_rounds=5, client_sizes=[100],
            batch_clipping=clipping,
        )  # fmt: skip
