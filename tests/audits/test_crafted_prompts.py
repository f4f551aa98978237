"""Prompts that a malicious server makes up: they find their target in clear sums, and in noisy ones what is claimed at
most."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from hushprompt.audits import crafted_prompts
from hushprompt.audits.audit import AuditSettings, budget_arms, measure
from hushprompt.audits.crafted_prompts import NOISE, attack_target, craft, why_left_out
from hushprompt.audits.likelihood import SumTest, log_likelihood_ratios
from hushprompt.audits.shadows import ShadowTrainer
from hushprompt.config import parse as configs
from hushprompt.errors import ConfigError
from hushprompt.federation.setup import client_sizes, make_partition
from hushprompt.privacy.mechanisms import base, gaussian

WIDE = {"name": "toy", "token_width": 32, "feature_dim": 16}
"""A toy tower in which 24 gradients do not lie in 8 dimensions."""
_made = {}


@pytest.fixture
def made_once(monkeypatch):
    """Crafted prompts of PromptFL at one seed do not depend on the noise: they are made once for all tests."""

    def remembered(world, arm, place):
        key = (place, arm.plan.sampler)
        if key not in _made:
            _made[key] = craft(world, arm, place)
        return _made[key]

    monkeypatch.setattr(crafted_prompts, "craft", remembered)


TOLD = {"promptfl": {}, "dp_fpl": {"rank": 2}, "fedpgp": {"rank": 2}}


def values_of(toy_values, tmp_path):
    """Three clients of 24 images, all of them in every batch of three rounds."""
    return {
        **toy_values,
        "backbone": WIDE,
        "sampling": {"name": "disjoint", "steps_per_round": 1},
        "method": {"name": "promptfl", "num_ctx": 4},
        "references": [],
        "runtime": {"cache_dir": str(tmp_path / "cache")},
    }


@pytest.fixture
def values(toy_values, tmp_path):
    return values_of(toy_values, tmp_path)


def config_of(values, noise_at="client", epsilon=8.0, **changes):
    privacy = {"epsilon": epsilon, "delta": 1e-3, "audience": "public", "noise_at": noise_at}
    return configs.parse({**values, "privacy": {**privacy, **changes.pop("privacy", {})}, **changes})


def audited(config, folder, num_targets=4):
    settings = AuditSettings(
        attacks=("crafted_prompt",), num_canaries=0, num_gradient_canaries=0, num_targets=num_targets
    )
    (budget,) = measure(config, settings, folder, lambda done, total: None, 1).budgets
    return budget, next((one for one in budget.audiences if one.audience == "server"), None)


def world_of(config):
    arms = budget_arms(config, (), client_sizes(make_partition(config, config.data.load())))
    return ShadowTrainer(config, arms, 0, 0).world, arms[0]


@pytest.mark.parametrize("method", TOLD)
def test_a_target_is_found_in_clear_sums_of_every_method_with_a_shared_context(values, tmp_path, method):
    values = {**values, "method": {"name": method, "num_ctx": 4, **TOLD[method]}}
    poisson = {"name": "poisson", "sampling_prob": 0.5}
    budget, server = audited(config_of(values, "server", sampling=poisson), tmp_path, 1)
    assert server is None, "a server that adds the noise is trusted"
    assert budget.clear_sums.auc.value >= 0.9
    assert budget.crafted_has_power
    assert budget.clear_sums.num_members + budget.clear_sums.num_non_members == 20 * 3


@pytest.mark.usefixtures("made_once")
def test_a_crafted_prompt_makes_its_target_stand_out(values):
    world, arm = world_of(config_of(values))
    plain = crafted_prompts._known(world, arm)
    for place in (0, 7):
        at_start = plain.judged(plain.state.shared.context, place)
        made = crafted_prompts.craft(world, arm, place)
        assert made.test.distance(NOISE) > 5 * at_start.test.distance(NOISE)


@pytest.mark.parametrize(("noise_at", "num_targets"), [("client", 4), ("shares", 4)])
@pytest.mark.usefixtures("made_once")
def test_under_noise_it_shows_less_than_is_claimed_and_more_than_nothing(toy_values, tmp_path, noise_at, num_targets):
    budget, server = audited(config_of(values_of(toy_values, tmp_path), noise_at), tmp_path, num_targets)
    (found,) = server.attacks
    assert budget.crafted_has_power
    assert (found.attack, found.bound.num_canaries) == ("crafted prompt", 20 * num_targets)
    assert found.bound.bound == "gdp_independent_trials"
    assert found.auc.low > 0.5
    assert found.auc.value < 0.99
    assert server.claimed["epsilon"] == pytest.approx(8.0, rel=1e-3)
    assert 0 < server.lower_bound == found.bound.epsilon_lower_bound < server.claimed["epsilon"]
    assert not server.is_contradicted


@pytest.mark.parametrize("noise_at", ["client", "shares"])
@pytest.mark.usefixtures("made_once")
def test_noise_that_clients_forget_is_caught(values, tmp_path, monkeypatch, noise_at):
    monkeypatch.setattr(gaussian, "add_gaussian", lambda value, std, rng: value)
    monkeypatch.setattr(base, "share_of_noise", lambda size, *others: np.zeros(size, dtype=np.int64))
    _, server = audited(config_of(values, noise_at), tmp_path)
    assert server.attacks[0].auc.value > 0.99
    assert server.lower_bound > 8
    assert server.is_contradicted


@pytest.mark.usefixtures("made_once")
def test_sampling_that_is_claimed_is_allowed_for(values, tmp_path):
    poisson = {"name": "poisson", "sampling_prob": 0.5}
    _, server = audited(config_of(values, "client", math.inf, sampling=poisson), tmp_path, 3)
    assert server.attacks[0].bound.bound == "independent_trials"
    assert server.attacks[0].tpr["0.01"].value is None
    assert server.lower_bound > 1
    never = 0.5**3  # drawn
    assert server.attacks[0].auc.value < 1
    assert server.attacks[0].auc.value == pytest.approx(1 - never / 2, abs=0.07)


def test_the_server_of_a_small_tower_says_that_it_has_no_power(values, tmp_path):
    from hushprompt.cli.audit import _clear_sums

    poisson = {"name": "poisson", "sampling_prob": 0.5}
    budget, _ = audited(config_of(values, backbone={"name": "toy"}, sampling=poisson), tmp_path, 2)
    assert budget.clear_sums.auc.value < 0.9
    assert not budget.crafted_has_power
    assert "NO POWER: below 0.9" in _clear_sums(budget, budget.clear_sums)


@pytest.mark.usefixtures("made_once")
def test_a_target_that_is_out_leaves_no_trace_and_runs_repeat(values):
    world, arm = world_of(config_of(values, "client", math.inf))
    first, again = (attack_target(world, arm, 2) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert torch.equal(first["holds"].any(dim=1), first["is_in"].bool())
    assert first["holds"].shape == first["clear"].shape == (20, 3)
    assert ((first["seen"] > 0) == first["is_in"]).all()


def test_sums_are_tested_as_by_the_ratio_of_all_examples_at_once():
    draws = np.random.default_rng(0)
    rows, released = torch.from_numpy(draws.standard_normal((5, 9))), torch.from_numpy(draws.standard_normal(9))
    drawn = torch.full((5,), 0.3, dtype=torch.float64)
    for noise in (3.0, 10.0):  # more than what is unexplained
        expected = log_likelihood_ratios(released, rows, drawn, noise)[2]
        test = SumTest(rows[2], torch.cat([rows[:2], rows[3:]]), 0.3)
        assert test.ratio(released, noise) == pytest.approx(float(expected))
    alone = SumTest(rows[2], rows[:0], 0.3)
    assert alone.distance(2.0) == pytest.approx(float(rows[2].square().sum()) / 4)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": {"name": "local_only", "num_ctx": 4}, "privacy": {"audience": "personal"}}, "local-only has none"),
        ({"method": {"name": "class_means"}}, "Class means has none"),
        ({"method": {"name": "dp_fpl_released", "num_ctx": 4, "rank": 2}}, "clips batches"),
        ({"privacy": {"privacy_unit": "client"}}, 'privacy.privacy_unit is "client"'),
        ({"training": {"num_rounds": 2, "local_steps": 2}, "privacy": {"noise_at": "client"},
         "sampling": {"name": "poisson", "sampling_prob": 0.5, "steps_per_round": 2}},
         "clients step copies of it"),
    ],
)  # fmt: skip
def test_where_it_has_no_meaning_it_is_refused_by_name_and_left_out_otherwise(values, tmp_path, changes, says):
    config = config_of(values, "server", **{key: dict(value) for key, value in changes.items()})
    with pytest.raises(ConfigError, match=says) as refused:
        audited(config, tmp_path)
    assert str(refused.value).endswith("Leave crafted_prompt out of --attack.")
    settings = AuditSettings(num_shadows=4, num_canaries=0, num_gradient_canaries=0)
    if config.privacy.privacy_unit == "client":
        record = measure(config, settings, tmp_path, lambda done, total: None, 1)
        assert list(record.left_out) == ["crafted_prompt"]
        assert record.budgets[0].clear_sums is None


def test_a_client_in_no_round_gets_no_prompt(values):
    world, arm = world_of(config_of(values))
    assert why_left_out(world.config, arm, 0) is None
    never = dataclasses.replace(arm, cohorts=dataclasses.replace(arm.cohorts, members=np.array([[1, 2]] * 3)))
    assert why_left_out(world.config, never, 0).endswith("client 0 is in no round.")
