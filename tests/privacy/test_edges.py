"""Accountants over the whole domain: never below a lower bound of the truth, never above Renyi, never "no noise"."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

import hushprompt as hp
from hushprompt.errors import ConfigError, PrivacyError
from hushprompt.privacy import renyi
from hushprompt.privacy.accounting import calibrate, claim, epsilon
from hushprompt.privacy.guarantee import guarantee
from hushprompt.privacy.least_epsilon import least_epsilon
from hushprompt.privacy.losses import FINE, ComposedLosses, smallest_delta
from hushprompt.privacy.releases import GaussianReleases

RELATIONS = ("add_remove", "replace_one")
NASTY = [
    (0.05, 1e-9, 1_000_000, 1e-30),  # loud, and hardly ever drawn
    (0.05, 0.01, 100, 1e-5),  # losses in the hundreds
    (0.3, 0.01, 100, 1e-20),
    (0.39, 0.9997, 1000, 5e-6),  # nearly always drawn
    (1.0, 1e-9, 1, 1e-30),  # moments of 1 + 1e-18
    (1.0, 0.001, 100_000, 1e-5),  # losses as wide as the grid
    (2.0, 0.3, 5000, 1e-13),  # FFT round-off
    (38.6, 0.6, 60_000, 7e-7),
    (1e4, 0.5, 1_000_000, 1e-6),
    (1e4, 1e-9, 1, 0.0999),
    (1e4, 0.9, 1, 1e-6),
    (10.0, 1e-9, 1_000_000, 1e-10),
    (0.05, 1.0, 1_000_000, 1e-30),  # epsilon 2e8
    (1e4, 1.0, 1, 1e-30),
    (100.0, 1e-4, 1000, 1e-5),  # losses spread over less than a step of the grid
    (10**-1.25, 0.1, 1000, 1e-15),  # scipy finds no quantile of the count
]


def of(z, q, num_steps):
    return GaussianReleases(num_steps=num_steps, noise_multiplier=z, sampling_prob=q)


def delta_of_one(z, q, at):
    """Exact delta of one sampled release, the larger of adding and removing."""
    x = z * z * math.log1p(math.expm1(at) / q) + 0.5  # where the loss of a removal is `at`
    removed = (1 - q) * norm.sf(x / z) + q * norm.sf((x - 1) / z) - math.exp(at) * norm.sf(x / z)
    return max(removed, 0.0)


def check(z, q, num_steps, delta, relation):
    parts = of(z, q, num_steps)
    claimed, shown, least = claim(parts, delta=delta, relation=relation)
    assert math.isfinite(claimed.epsilon), "there is noise"
    assert claimed.epsilon >= least * (1 - 1e-6) - 1e-8
    assert claimed.epsilon <= shown["rdp"] * (1 + 1e-6) + 1e-9
    assert epsilon(parts, delta=delta, relation=relation) == claimed.epsilon
    if q < 1 and claimed.epsilon < 30:
        assert delta_of_one(z, q, claimed.epsilon) <= delta * (1 + 1e-6) + 1e-17
    statement = guarantee(audience="public", releases=parts, delta=delta, relation=relation, unit="example",
                          sampling_description="Poisson sampling")  # fmt: skip
    assert statement.warnings == ()
    assert statement.epsilon == claimed.epsilon
    assert "No guarantee" not in statement.statement()


@pytest.mark.parametrize("point", NASTY, ids=lambda point: "z={} q={} T={} delta={}".format(*point))
@pytest.mark.parametrize("relation", RELATIONS)
def test_a_claim_at_a_nasty_point_lies_between_a_lower_bound_and_renyi(point, relation):
    check(*point, relation)


z_values = st.floats(math.log10(0.05), 4).map(lambda x: 10**x)
q_values = st.just(1.0) | st.floats(-9, 0).map(lambda x: 10**x) | st.floats(-6, -0.4).map(lambda x: 1 - 10**x)
step_counts = st.floats(0, 6).map(lambda x: round(10**x))
deltas = st.floats(-30, -1.001).map(lambda x: 10**x) | st.floats(-12, -3).map(lambda x: 10**x)


@pytest.mark.slow
@given(z_values, q_values, step_counts, deltas, st.sampled_from(RELATIONS))
def test_a_claim_anywhere_lies_between_a_lower_bound_and_renyi(z, q, num_steps, delta, relation):
    check(z, q, num_steps, delta, relation)


def tilted_lower_bound(z, q, num_steps, delta, step=2e-4, size=2**21):
    """Epsilon of removing an example, all losses rounded down, by an FFT of the tilted distribution.

    Tilting by exp(theta x loss) moves the mass to where epsilon lies, so rounding is relative to it.
    """
    x = np.linspace(-9 * z, 1 + 9 * z, 400_001)
    losses = np.floor(np.log1p(q * np.expm1((2 * x - 1) / (2 * z * z))) / step).astype(int)[:-1]
    mass = np.diff((1 - q) * norm.cdf(x / z) + q * norm.cdf((x - 1) / z))
    low = losses.min()
    pmf = np.bincount(losses - low, weights=mass)
    at = (np.arange(len(pmf)) + low) * step
    guess = epsilon(of(z, q, num_steps), delta=delta, relation="add_remove", accountant="rdp")
    thetas = np.linspace(0.1, 3, 60)
    mgf = np.array([np.log(pmf @ np.exp(t * at)) for t in thetas])
    best = int(np.argmin(num_steps * mgf - thetas * guess))
    tilted = pmf * np.exp(thetas[best] * at - mgf[best])
    composed = np.fft.irfft(np.fft.rfft(tilted, size) ** num_steps, size)
    middle = round(num_steps * (tilted @ np.arange(len(pmf))))
    places = np.arange(middle - size // 2, middle + size // 2)
    total = (places + num_steps * low) * step
    log_mass = np.log(np.maximum(composed[places % size], 1e-14)) + num_steps * mgf[best] - thetas[best] * total
    log_mass[composed[places % size] < 1e-12] = -np.inf

    def delta_at(value):
        beyond = total > value
        return float(-np.expm1(value - total[beyond]) @ np.exp(log_mass[beyond]))

    return brentq(lambda value: math.log(max(delta_at(value), 1e-300) / delta), 0.5 * guess, 1.1 * guess, xtol=1e-6)


@pytest.mark.parametrize("delta", [1e-13, 1e-14])
def test_below_the_limit_of_rounding_nothing_rests_on_fourier_transforms(delta):
    parts = of(2.0, 0.3, 5000)
    least = tilted_lower_bound(2.0, 0.3, 5000, delta)
    assert ComposedLosses([parts], FINE).get_epsilon(delta) < least, "what is tested against has teeth"
    assert delta < smallest_delta([parts])
    assert least <= epsilon(parts, delta=delta, relation="add_remove")


def test_above_the_limit_losses_agree_with_a_reference_that_rounding_leaves_alone():
    parts = of(2.0, 0.3, 5000)
    delta = smallest_delta([parts])
    by_pld = ComposedLosses([parts], FINE).get_epsilon(delta)
    assert tilted_lower_bound(2.0, 0.3, 5000, delta) == pytest.approx(by_pld, rel=6e-3)


@pytest.mark.parametrize(("z", "steps"), [(10.0, 1), (50.0, 100)])
def test_what_an_attack_proves_is_below_the_exact_value_and_near_it(z, steps):
    exact = epsilon(of(z, 1.0, steps), delta=1e-5, relation="add_remove")
    proven = least_epsilon(noise_multiplier=z, sampling_prob=1.0, num_steps=steps, delta=1e-5)
    assert 0.7 * exact < proven < exact


def test_renyi_sums_are_dp_accountings_where_its_digits_last_and_not_zero_where_they_do_not():
    orders = np.array([2, 3, 17, 63])
    own = renyi._divergences(of(1.5, 0.1, 7), orders)
    direct = renyi.rdp.RdpAccountant(orders).compose(of(1.5, 0.1, 7).event()).rdp
    assert own == pytest.approx(direct, rel=1e-6)
    assert (own >= direct).all()
    tiny = of(1.0, 1e-9, 1)
    assert renyi._divergences(tiny, orders[:2]) == pytest.approx(orders[:2] / 2 * 1e-18 * math.expm1(1.0), rel=1e-6)
    assert epsilon(tiny, delta=1e-30, relation="add_remove", accountant="rdp") > 1e-9


@pytest.mark.parametrize(
    "asked",
    [
        {"target_epsilon": 2.0, "delta": 1e-16},
        {"target_epsilon": 2.0, "delta": 1e-15},
        {"target_epsilon": 1.0, "num_steps": 100_000, "sampling_prob": 0.001},
        {"target_epsilon": 1e-4},
        {"target_epsilon": 2.0, "sampling_prob": 1e-9, "delta": 1e-20},
        {"target_epsilon": 2.0, "delta": 1e-12, "relation": "replace_one"},
        {"target_epsilon": 1e-6, "num_steps": 1_000_000, "sampling_prob": 0.5, "relation": "replace_one"},
    ],
    ids=str,
)
def test_calibration_at_the_edges_gives_noise_that_proves_the_target(asked):
    asked = {"delta": 1e-5, "num_steps": 40, "sampling_prob": 0.05, "relation": "add_remove", **asked}
    z = calibrate(**asked)
    parts = of(z, asked["sampling_prob"], asked["num_steps"])
    claimed, _, least = claim(parts, delta=asked["delta"], relation=asked["relation"])
    assert least <= claimed.epsilon <= asked["target_epsilon"]
    assert claimed.epsilon > 0.9 * asked["target_epsilon"], "no more noise than is needed"


def test_a_smaller_delta_needs_a_little_more_noise_on_both_sides_of_the_limit():
    noise = [
        calibrate(target_epsilon=2.0, delta=delta, num_steps=40, sampling_prob=0.05, relation="add_remove")
        for delta in (1e-5, 1.1e-11, 0.9e-11, 1e-16)
    ]
    assert noise == sorted(noise)
    assert noise[-1] < 2.1


@pytest.mark.parametrize("delta", [0.1, 0.5, 1.0, 0.0, -1e-5, 1e-200, math.nan])
def test_a_delta_that_means_nothing_is_refused_everywhere(delta):
    with pytest.raises(ConfigError, match="delta must be"):
        hp.calibrate(2.0, rounds=40, delta=delta)
    with pytest.raises(ConfigError, match="delta must be"):
        hp.epsilon(2.0, rounds=40, delta=delta)
    with pytest.raises(ConfigError, match="delta must be"):
        hp.PrivacyConfig(delta=delta)
    with pytest.raises(ConfigError, match="metrics_delta must be"):
        hp.RunConfig(evaluation={"metrics_delta": delta})


def test_a_budget_that_every_noise_meets_is_refused():
    with pytest.raises(ConfigError, match="any noise, even none, would meet the budget"):
        hp.calibrate(2.0, rounds=40, sampling_prob=1e-9)


@pytest.mark.parametrize("target", [1e7, 1e300])
def test_a_target_beyond_numbers_is_refused(target):
    with pytest.raises(PrivacyError, match="inf for no noise"):
        hp.calibrate(target, rounds=40, sampling_prob=0.05)


def test_an_ordinary_calibration_keeps_its_digits():
    z = calibrate(target_epsilon=0.05, delta=1e-5, num_steps=40, sampling_prob=0.05, relation="add_remove")
    assert z == 18.6956
    assert epsilon(of(z, 0.05, 40), delta=1e-5, relation="add_remove") == 0.04999844664105226
