"""Releases of several mechanisms in one run: one release and many rounds, as dp_accounting composes them."""

import dataclasses

import dp_accounting
import pytest
from dp_accounting import pld, rdp

from hushprompt.errors import PrivacyError
from hushprompt.privacy import accounting
from hushprompt.privacy.accounting import compose, epsilon
from hushprompt.privacy.config import Channel, PrivacyConfig
from hushprompt.privacy.ledger import Charge, Ledger, why_not
from hushprompt.privacy.plan import make_plan
from hushprompt.privacy.release_plan import BatchClipping
from hushprompt.privacy.releases import GaussianReleases
from hushprompt.privacy.renyi import RDP_ORDERS
from hushprompt.privacy.sampling import PoissonSampler

DELTA = 1e-5
ONCE = GaussianReleases(num_steps=1, noise_multiplier=4.0)
ROUNDS = GaussianReleases(num_steps=30, noise_multiplier=1.5, sampling_prob=0.1)
NOTHING = [
    GaussianReleases(num_steps=0, noise_multiplier=1.0),
    GaussianReleases(num_steps=5, noise_multiplier=float("inf")),
    GaussianReleases(num_steps=0, noise_multiplier=1.0, sampling_prob=0.5),
]


def both_event():
    rounds = dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(1.5)), 30
    )
    return dp_accounting.ComposedDpEvent([rounds, dp_accounting.GaussianDpEvent(4.0)])


def of(*parts, relation="add_remove", accountant=None):
    return epsilon(parts, delta=DELTA, relation=relation, accountant=accountant)


def test_one_release_beside_sampled_rounds_costs_what_dp_accounting_says():
    ledger = pld.PLDAccountant(value_discretization_interval=accounting.FINE).compose(both_event())
    assert of(ONCE, ROUNDS) == of(ROUNDS, ONCE) == ledger.get_epsilon(DELTA)
    by_rdp = rdp.RdpAccountant([*RDP_ORDERS, 64, 128, 256]).compose(both_event())
    assert of(ONCE, ROUNDS, accountant="rdp") == pytest.approx(by_rdp.get_epsilon(DELTA))
    assert of(ONCE, ROUNDS, accountant="rdp") >= of(ONCE, ROUNDS)


@pytest.mark.parametrize("relation", ["add_remove", "replace_one"])
def test_a_composition_costs_more_than_each_part_and_less_than_their_sum(relation):
    once, rounds, both = (of(*parts, relation=relation) for parts in ([ONCE], [ROUNDS], [ONCE, ROUNDS]))
    assert max(once, rounds) * 1.01 < both < once + rounds


@pytest.mark.parametrize("relation", ["add_remove", "replace_one"])
@pytest.mark.parametrize("part", [ONCE, ROUNDS, GaussianReleases(num_steps=40, noise_multiplier=20.0)])
@pytest.mark.parametrize("accountant", ["default", "pld", "rdp"])
def test_a_part_that_releases_nothing_changes_no_bit(part, relation, accountant):
    name = None if accountant == "default" else accountant
    for nothing in NOTHING:
        assert compose([nothing, part, nothing]) == (part,)
        assert accounting.event([nothing, part]) == part.event()
    alone = epsilon(part, delta=DELTA, relation=relation, accountant=name)
    assert of(*NOTHING, part, relation=relation, accountant=name) == alone


def test_a_part_that_releases_nothing_changes_no_bit_of_the_noise():
    settings = {"target_epsilon": 2.0, "delta": DELTA, "num_steps": 30, "sampling_prob": 0.1, "relation": "add_remove"}
    assert accounting.calibrate(**settings, beside=NOTHING) == accounting.calibrate(**settings)


def test_unsampled_parts_are_one_gaussian_mechanism():
    parts = [GaussianReleases(num_steps=3, noise_multiplier=4.0), GaussianReleases(num_steps=5, noise_multiplier=9.0)]
    (one,) = compose(parts)
    assert one.noise_multiplier**-2 == pytest.approx(3 / 4.0**2 + 5 / 9.0**2)
    event = dp_accounting.ComposedDpEvent([part.event() for part in parts])
    by_pld = pld.PLDAccountant(value_discretization_interval=accounting.FINE).compose(event).get_epsilon(DELTA)
    assert of(*parts) == pytest.approx(by_pld, rel=2e-3)
    assert of(*parts) <= by_pld
    assert of(ONCE, ONCE) == of(GaussianReleases(num_steps=2, noise_multiplier=4.0)), "equal parts are counted"
    assert of(ONCE, GaussianReleases(num_steps=1, noise_multiplier=0.0)) == float("inf")


@pytest.mark.parametrize("prob", [1.0, 0.1])
@pytest.mark.parametrize("relation", ["add_remove", "replace_one"])
def test_rounds_are_calibrated_beside_a_release_of_fixed_noise(prob, relation):
    once = GaussianReleases(num_steps=1, noise_multiplier=6.0)
    settings = {"delta": DELTA, "relation": relation}
    z = accounting.calibrate(target_epsilon=3.0, num_steps=20, sampling_prob=prob, beside=[once], **settings)
    alone = accounting.calibrate(target_epsilon=3.0, num_steps=20, sampling_prob=prob, **settings)
    rounds = GaussianReleases(num_steps=20, noise_multiplier=z, sampling_prob=prob)
    assert 3.0 * 0.995 < epsilon([once, rounds], **settings) <= 3.0
    assert z > alone * 1.01


def test_a_release_that_spends_everything_leaves_nothing_to_calibrate():
    loud = GaussianReleases(num_steps=1, noise_multiplier=0.5)
    with pytest.raises(PrivacyError, match="leaves nothing of 2"):
        accounting.calibrate(
            target_epsilon=2.0, delta=DELTA, num_steps=20, sampling_prob=0.1, relation="add_remove", beside=[loud]
        )


def plan_of(beside=(), **privacy):
    config = PrivacyConfig(**{"delta": DELTA, **privacy})
    sampler = PoissonSampler(sampling_prob=0.1)
    return make_plan(
        config, sampler, channels=frozenset(Channel), num_rounds=20, client_sizes=[400, 300], beside=tuple(beside)
    )


def test_a_plan_counts_a_release_beside_its_rounds_for_every_audience():
    plan, rounds = plan_of([ONCE], epsilon=3.0, noise_at="client"), plan_of(epsilon=3.0, noise_at="client")
    for audience, guarantee in plan.guarantees().items():
        event = dp_accounting.ComposedDpEvent([plan.releases(audience).event(), ONCE.event()])
        ledger = pld.PLDAccountant(value_discretization_interval=accounting.FINE).compose(event)
        assert guarantee.epsilon == plan.epsilon(audience) == ledger.get_epsilon(DELTA)
        assert 3.0 * 0.99 < guarantee.epsilon <= 3.0
        assert (
            "20 releases and 1 more of every example, without sampling, with noise multiplier 4"
            in guarantee.statement()
        )
        assert guarantee.event == repr(event)
        assert plan.epsilon(audience, 0) == of(ONCE) > rounds.epsilon(audience, 0) == 0
    for channel, z in plan.release_plan.noise_multipliers.items():
        assert z > rounds.release_plan.noise_multipliers[channel]


def test_a_plan_with_nothing_beside_its_rounds_is_the_plan_without():
    plain, empty = plan_of(epsilon=3.0), plan_of(NOTHING, epsilon=3.0)
    assert empty.release_plan == plain.release_plan
    for audience, guarantee in empty.guarantees().items():
        other = plain.guarantees()[audience]
        assert guarantee.statement() == other.statement()
        assert guarantee.cross_checks == other.cross_checks


def test_the_budget_of_a_client_is_charged_with_the_release_beside():
    plan = plan_of([ONCE], epsilon=3.0)
    ledger = Ledger()
    for round_index in range(20):
        charge = Charge(round_index, (0, 1))
        assert why_not(plan, ledger, charge) is None
        ledger = ledger.with_charge(charge)
    assert "above 3" in why_not(plan, ledger, Charge(20, (0,)))
    assert why_not(dataclasses.replace(plan, beside=(ONCE, ONCE)), ledger, charge) is not None


def test_clipped_batches_have_nothing_beside_them():
    clipping = BatchClipping(num_local_blocks=2, calibration="accountant")
    with pytest.raises(PrivacyError, match="beside no other release"):
        make_plan(
            PrivacyConfig(noise_source="seeded"),
            PoissonSampler(), channels=frozenset(Channel), num_rounds=2, client_sizes=[9],
            batch_clipping=clipping, beside=(ONCE,),
        )  # fmt: skip


def test_only_gaussian_events_are_composed():
    with pytest.raises(PrivacyError, match="Only Gaussian releases"):
        accounting.noise_multiplier(dp_accounting.LaplaceDpEvent(1.0))
