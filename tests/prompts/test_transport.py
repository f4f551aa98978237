import numpy as np
import ot
import pytest
import torch

from hushprompt.errors import ConfigError
from hushprompt.prompts.transport import LARGEST_EXPONENT, MAX_COST, Transport

EXACT = {"num_iterations": 3000}


def costs(*shape, seed=0, scale=1.0):
    """Costs 1 - cosine of random directions."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(scale * rng.uniform(0, 2, size=shape)).float()


def marginals(num_patches, num_prompts, mass):
    return np.full(num_patches, 1 / num_patches), np.full(num_prompts, mass / num_prompts)


@pytest.mark.parametrize("num_prompts", [1, 2, 3])
@pytest.mark.parametrize("regularization", [1.0, 0.1, 0.03])
def test_with_all_mass_it_is_pots_balanced_plan(num_prompts, regularization):
    cost = costs(4, 7, num_prompts)
    plans = Transport(mass=1.0, regularization=regularization, **EXACT).plan(cost)
    for matrix, plan in zip(cost, plans, strict=True):
        wanted = ot.sinkhorn(
            *marginals(7, num_prompts, 1.0), matrix.double().numpy(), regularization,
            numItermax=2000, stopThr=1e-9,
        )  # fmt: skip
        np.testing.assert_allclose(plan, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mass", [0.8, 0.5, 0.1])
@pytest.mark.parametrize("num_prompts", [1, 2, 3])
@pytest.mark.parametrize("regularization", [1.0, 0.1, 0.03])
def test_with_less_mass_it_is_pots_partial_plan(mass, num_prompts, regularization):
    cost = costs(4, 7, num_prompts)
    plans = Transport(mass=mass, regularization=regularization, **EXACT).plan(cost)
    for matrix, plan in zip(cost, plans, strict=True):
        # Prompts that must hand out all they have, or prompts that may hand out at most that while all of the mass
        # must move: one and the same set of plans.
        wanted = ot.partial.entropic_partial_wasserstein(
            *marginals(7, num_prompts, mass), matrix.double().numpy(), regularization, m=mass - 1e-12,
            numItermax=20_000, stopThr=1e-13, method="sinkhorn_log",
        )  # fmt: skip
        np.testing.assert_allclose(plan, wanted, rtol=0, atol=1e-5)


def test_with_little_regularization_it_nears_the_exact_partial_plan():
    cost = costs(8, 2)
    plan = Transport(mass=0.5, regularization=0.004, **EXACT).plan(cost)
    exact = ot.partial.partial_wasserstein(*marginals(8, 2, 0.5), cost.double().numpy(), m=0.5)
    assert float((plan * cost).sum()) == pytest.approx(float((exact * cost.numpy()).sum()), rel=1e-2)


@pytest.mark.parametrize("mass", [1.0, 0.8, 0.3])
def test_the_settings_of_the_paper_keep_the_marginals(mass):
    plan = Transport(mass=mass).plan(0.7 + costs(5, 6, 49, 2, scale=0.15))  # cosines of a model between 0 and 0.3
    assert plan.shape == (5, 6, 49, 2)
    torch.testing.assert_close(plan.sum(-2), torch.full((5, 6, 2), mass / 2))
    assert float(plan.sum(-1).max()) <= 1 / 49 * (1 + 1e-2)
    assert float(plan.min()) >= 0


def test_sharp_costs_neither_overflow_nor_vanish():
    plan = Transport(mass=0.8, regularization=0.001).plan(costs(3, 9, 2))
    assert bool(plan.isfinite().all())
    torch.testing.assert_close(plan.sum((-1, -2)), torch.full((3,), 0.8))


@pytest.mark.parametrize("mass", [1.0, 0.8, 0.1])
@pytest.mark.parametrize("regularization", [1.0, 0.1, 0.08])
@pytest.mark.parametrize("num_iterations", [1, 50])
def test_factors_and_potentials_take_the_same_steps(mass, regularization, num_iterations, monkeypatch):
    transport = Transport(mass=mass, regularization=regularization, num_iterations=num_iterations)
    cost = torch.cat([costs(9, 12, 3), costs(9, 12, 3, seed=1).round().clamp(max=1) * 2])
    plan = transport.plan(cost)
    monkeypatch.setattr("hushprompt.prompts.transport.MAX_COST", np.inf)
    torch.testing.assert_close(plan, transport.plan(cost), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("mass", [1.0, 0.8, 0.001])
def test_the_sharpest_problems_of_cosines_do_not_overflow(mass):
    """Patches that all fit one prompt and not the other, and patches of which one alone fits."""
    cost = torch.zeros(2, 400, 2)
    cost[0, :, 1] = 2.0
    cost[1, 1:] = 2.0
    plan = Transport(mass=mass, regularization=MAX_COST / LARGEST_EXPONENT).plan(cost)
    assert bool(plan.isfinite().all())
    torch.testing.assert_close(plan.sum((-1, -2)), torch.full((2,), mass))


def test_a_plan_depends_on_its_own_costs_alone_however_slowly_it_converges():
    """The published code stops all problems of a batch together: there one image decides about another's plan."""
    transport, cost = Transport(), costs(6, 12, 2)
    together = transport.plan(cost)
    hard = costs(6, 12, 2, seed=1).round().clamp(max=1) * 2  # nothing, or all that a cost can be
    beside = transport.plan(torch.cat([hard, cost]))[6:]
    for matrix, plan, other in zip(cost, together, beside, strict=True):
        torch.testing.assert_close(other, plan, rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(transport.plan(matrix), plan, rtol=1e-5, atol=1e-9)


def test_prompts_without_a_difference_share_every_patch():
    plan = Transport(mass=0.6).plan(torch.full((5, 3), 0.7))
    torch.testing.assert_close(plan, torch.full((5, 3), 0.6 / 15))


def test_the_cheapest_patches_are_taken():
    cost = torch.ones(10, 2)
    cost[:4] = 0.0
    plan = Transport(mass=0.4, regularization=0.02).plan(cost)
    torch.testing.assert_close(plan.sum(-1), torch.cat([torch.full((4,), 0.1), torch.zeros(6)]), rtol=0, atol=1e-3)


def test_no_problems_have_no_plans():
    assert Transport().plan(torch.zeros(0, 4, 9, 2)).shape == (0, 4, 9, 2)


@pytest.mark.parametrize("wrong", [{"mass": 0.0}, {"mass": 1.1}, {"regularization": 0.0}, {"num_iterations": 0}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Transport(**wrong)
