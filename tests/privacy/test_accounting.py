"""Every number here is pinned against dp_accounting called directly, an independent integral, or a published value."""

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld, rdp
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from hushprompt.errors import ConfigError, PrivacyError
from hushprompt.privacy import accounting, losses, renyi
from hushprompt.privacy.accounting import calibrate, combine_noise_multipliers, epsilon
from hushprompt.privacy.guarantee import contradictions, guarantee
from hushprompt.privacy.releases import GaussianReleases

DELTA = 1e-5


def releases(noise_multiplier, num_steps=100, sampling_prob=1.0):
    return GaussianReleases(num_steps=num_steps, noise_multiplier=noise_multiplier, sampling_prob=sampling_prob)


def eps(noise_multiplier, num_steps=100, sampling_prob=1.0, relation="add_remove", accountant=None, delta=DELTA):
    return epsilon(
        releases(noise_multiplier, num_steps, sampling_prob), delta=delta, relation=relation, accountant=accountant
    )


@pytest.mark.parametrize(
    ("target", "expected"), [(0.4, 86.3), (0.2, 163.0), (0.1, 307.5), (0.05, 577.7), (0.01, 2437.9)]
)
def test_calibration_gives_the_known_noise_of_100_full_participation_releases(target, expected):
    z = calibrate(target_epsilon=target, delta=DELTA, num_steps=100, sampling_prob=1.0, relation="add_remove")
    assert z == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("claimed", "true"), [(0.4, 0.4076), (0.2, 0.1915), (0.1, 0.0898), (0.05, 0.0419), (0.01, 0.0069)]
)
def test_the_published_noise_formula_gives_another_epsilon_than_it_claims(claimed, true):
    assert eps(math.sqrt(100 * math.log(1 / DELTA)) / claimed) == pytest.approx(true, abs=6e-5)


@pytest.mark.parametrize("z", [1.0, 8.6, 86.3, 500.0])
def test_the_closed_form_agrees_with_dp_accountings_pld(z):
    ledger = pld.PLDAccountant(value_discretization_interval=1e-3).compose(releases(z).event())
    assert eps(z) == pytest.approx(ledger.get_epsilon(DELTA), rel=1e-6, abs=2e-5)


def test_the_closed_form_agrees_with_an_integral_of_the_densities():
    mu, at = 0.7, 1.3
    gap = lambda x: max(0.0, norm.pdf(x, mu) - math.exp(at) * norm.pdf(x))  # noqa: E731
    integral, _ = quad(gap, -10, 12, points=[at / mu + mu / 2], limit=500)
    assert accounting._gdp_delta(mu, at) == pytest.approx(integral, rel=1e-6)


@pytest.mark.parametrize(("z", "q", "steps"), [(0.8, 0.1, 30), (6.0, 0.05, 1000), (2.0, 0.5, 20)])
def test_sampled_epsilon_is_dp_accountings(z, q, steps):
    event = dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(z)), steps
    )
    direct = pld.PLDAccountant(value_discretization_interval=1e-3).compose(event).get_epsilon(DELTA)
    assert eps(z, steps, q) == direct
    orders = [*renyi.RDP_ORDERS, 64, 128, 256]
    assert eps(z, steps, q, accountant="rdp") == rdp.RdpAccountant(orders).compose(event).get_epsilon(DELTA)


@pytest.mark.parametrize("z", [0.2, 1.3, 40.0])
@pytest.mark.parametrize("q", [1e-5, 0.1, -math.expm1(-0.5), 0.97])  # the third has its largest loss on the grid
def test_losses_of_one_release_are_dp_accountings_bit_for_bit(z, q):
    told = pld.privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=z, value_discretization_interval=1e-2, sampling_prob=q
    )
    for side in ("_pmf_remove", "_pmf_add"):
        found_at, told_at = (getattr(one, side).to_dense_pmf() for one in (losses._one_release(z, q, 1e-2), told))
        assert (found_at._lower_loss, found_at._infinity_mass) == (told_at._lower_loss, told_at._infinity_mass)
        assert np.array_equal(found_at._probs, told_at._probs)


def test_epsilon_so_far_is_dp_accountings_after_every_round():
    for steps in (1, 2, 3, 17, 40):
        event = dp_accounting.SelfComposedDpEvent(
            dp_accounting.PoissonSampledDpEvent(0.05, dp_accounting.GaussianDpEvent(1.1)), steps
        )
        ledger = pld.PLDAccountant(value_discretization_interval=1e-3).compose(event)
        assert eps(1.1, steps, 0.05) == ledger.get_epsilon(DELTA)
        composed = accounting.ComposedLosses([releases(1.1, steps, 0.05)], 1e-3)
        assert composed.get_delta(0.5) == ledger.get_delta(0.5)


def test_sampled_calibration_gives_the_known_noise():
    z = calibrate(target_epsilon=1.0, delta=DELTA, num_steps=1000, sampling_prob=0.05, relation="add_remove")
    assert z == pytest.approx(5.99, abs=0.01)


@pytest.mark.parametrize("is_removal", [True, False])
def test_one_sampled_release_agrees_with_an_integral_of_its_hockey_stick(is_removal):
    z, q, delta = 0.9, 0.2, 1e-3
    value = eps(z, 1, q, delta=delta)

    def hockey_stick(at):
        mixed = lambda x: (1 - q) * norm.pdf(x, 0, z) + q * norm.pdf(x, 1, z)  # noqa: E731
        plain = lambda x: norm.pdf(x, 0, z)  # noqa: E731
        top, bottom = (mixed, plain) if is_removal else (plain, mixed)
        x = np.linspace(-12, 14, 400_001)
        return np.trapezoid(np.maximum(top(x) - math.exp(at) * bottom(x), 0), x)

    assert hockey_stick(value) <= delta * 1.001
    if is_removal:  # the worse direction is tight
        assert hockey_stick(value - 2e-3) > delta


@pytest.mark.parametrize(("q", "tolerance"), [(1.0, 1e-5), (0.1, 1e-3)])
@pytest.mark.parametrize("relation", ["add_remove", "replace_one"])
@pytest.mark.parametrize("target", [0.5, 3.0])
def test_calibration_meets_the_target_and_a_little_less_noise_does_not(q, tolerance, relation, target):
    z = calibrate(target_epsilon=target, delta=DELTA, num_steps=30, sampling_prob=q, relation=relation)
    assert eps(z, 30, q, relation) <= target
    assert eps(z * (1 - tolerance), 30, q, relation) > target


def test_replace_one_doubles_the_sensitivity_without_sampling():
    assert eps(100.0, relation="replace_one") == eps(50.0)
    ledger = pld.PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_ONE, 1e-4).compose(releases(100.0).event())
    assert eps(100.0, relation="replace_one") == pytest.approx(ledger.get_epsilon(DELTA), rel=1e-3)


def test_all_accountants_read_replace_one_alike():
    values = [eps(40.0, relation="replace_one", accountant=name) for name in ("gdp", "pld", "rdp")]
    assert values[1] == pytest.approx(values[0], rel=1e-2)
    assert values[0] < values[2] < 1.3 * values[0]


def test_replace_one_with_sampling_is_at_most_group_privacy_of_two_and_more_than_one():
    z, q, steps = 1.5, 0.1, 30
    one, two = eps(z, steps, q), eps(z, steps, q, "replace_one")
    assert one < two
    half_delta = epsilon(releases(z, steps, q), delta=DELTA / (1 + math.exp(two / 2)), relation="add_remove")
    assert two == pytest.approx(2 * half_delta, rel=2e-3)


@given(st.floats(0.5, 200), st.floats(1.01, 3.0), st.integers(1, 300))
def test_more_noise_and_fewer_steps_never_cost_more(z, factor, steps):
    assert eps(z * factor, steps) <= eps(z, steps)
    assert eps(z, steps) <= eps(z, steps + 1)


def test_two_releases_of_one_batch_are_one_with_added_precision():
    z = combine_noise_multipliers(150.0, 200.0, 250.0)
    event = dp_accounting.SelfComposedDpEvent(
        dp_accounting.ComposedDpEvent([dp_accounting.GaussianDpEvent(s) for s in (150.0, 200.0, 250.0)]), 100
    )
    direct = pld.PLDAccountant().compose(event).get_epsilon(DELTA)
    assert eps(z) == pytest.approx(direct, rel=1e-3)
    assert eps(z) == pytest.approx(0.31270, abs=1e-4)
    assert combine_noise_multipliers() == math.inf
    assert combine_noise_multipliers(3.0, math.inf) == pytest.approx(3.0)
    assert combine_noise_multipliers(3.0, 0.0) == 0.0


def test_nothing_released_costs_nothing_and_no_noise_has_no_bound():
    assert eps(1.0, 0) == 0.0
    assert eps(math.inf) == 0.0
    assert eps(0.0) == math.inf
    assert eps(0.0, sampling_prob=0.1) == math.inf
    assert calibrate(target_epsilon=math.inf, delta=DELTA, num_steps=3, sampling_prob=0.5, relation="add_remove") == 0.0


def test_wrong_settings_are_refused():
    with pytest.raises(PrivacyError, match="does not cover sampling"):
        eps(1.0, 10, 0.5, accountant="gdp")
    with pytest.raises(PrivacyError, match="delta must be"):
        eps(1.0, delta=1.0)
    with pytest.raises(PrivacyError, match="sampling_prob"):
        releases(1.0, sampling_prob=0.0)
    with pytest.raises(ConfigError, match="target_epsilon"):
        calibrate(target_epsilon=0.0, delta=DELTA, num_steps=3, sampling_prob=0.5, relation="add_remove")


def make_guarantee(z=2.0, q=0.1, relation="add_remove"):
    return guarantee(
        audience="personal",
        releases=releases(z, 30, q),
        delta=DELTA,
        relation=relation,
        unit="example",
        sampling_description="Poisson sampling with probability 0.1",
    )


@pytest.mark.parametrize(("z", "q"), [(2.0, 0.1), (20.0, 1.0)])
def test_a_statement_never_shows_epsilon_alone(z, q):
    found = make_guarantee(z, q)
    text = found.statement()
    for part in (f"{found.epsilon:.4g}", "delta = 1e-05", "example", "add_remove", "Poisson", found.accountant):
        assert part in text
    assert found.epsilon == found.cross_checks["gdp" if q == 1 else "pld"]
    assert found.cross_checks["rdp"] >= found.epsilon


def test_a_statement_without_noise_says_that_there_is_no_guarantee():
    assert "No guarantee" in make_guarantee(z=0.0).statement()
    assert "Nothing derived from private data" in make_guarantee(z=math.inf).statement()


@pytest.mark.parametrize(("q", "wrong", "factor"), [(0.1, "rdp", 0.1), (1.0, "pld", 0.9), (1.0, "pld", 1.1)])
def test_accountants_that_contradict_theory_give_a_warning_and_the_largest_epsilon(
    monkeypatch, caplog, q, wrong, factor
):
    honest = make_guarantee(z=20.0, q=q)
    assert honest.warnings == ()
    true = accounting._epsilon

    def fake(parts, delta, relation, accountant, interval):
        return true(parts, delta, relation, accountant, interval) * (factor if accountant == wrong else 1)

    monkeypatch.setattr(accounting, "_epsilon", fake)
    accounting._claim.cache_clear()
    found = make_guarantee(z=20.0, q=q)
    assert len(found.warnings) == 1
    assert f"WARNING: The {wrong} accountant shows epsilon" in found.statement()
    assert "theory rules out" in caplog.text
    assert found.epsilon == max(found.cross_checks.values()) >= honest.epsilon


@pytest.mark.parametrize("relation", ["add_remove", "replace_one"])
@pytest.mark.parametrize("z", [1.0, 15.0, 300.0])
@pytest.mark.parametrize("steps", [1, 100])
def test_the_stated_tolerance_is_enough_for_unsampled_releases(z, steps, relation):
    values = {name: eps(z, steps, relation=relation, accountant=name) for name in ("gdp", "pld", "rdp")}
    assert contradictions(values, values["gdp"], is_exact=True) == ()


@pytest.mark.parametrize("q", [0.01, 0.3, 0.9])
@pytest.mark.parametrize("z", [0.6, 2.0, 20.0])
@pytest.mark.parametrize("steps", [1, 50])
@pytest.mark.parametrize("relation", ["add_remove", "replace_one"])
def test_the_stated_tolerance_is_enough_for_sampled_releases(q, z, steps, relation):
    _, values, least = accounting.claim(releases(z, steps, q), delta=DELTA, relation=relation)
    assert contradictions(values, least, is_exact=False) == ()
