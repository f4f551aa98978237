"""The view of a server to which clients send noise shares, together with clients on its side: measured, and caught."""

import math

import numpy as np
import pytest
import torch

from helpers.toy_metric import toy_metric
from hushprompt.audits.audit import budget_arms
from hushprompt.audits.client_canaries import has_client_canaries
from hushprompt.audits.mechanism_audit import audit_audience
from hushprompt.audits.watch import Watch
from hushprompt.audits.world import World, candidates_of
from hushprompt.config import parse as configs
from hushprompt.federation.setup import assemble, client_sizes, declared_classes, load_model, make_partition
from hushprompt.privacy.config import Audience, Channel, PrivacyConfig
from hushprompt.privacy.mechanisms import base
from hushprompt.privacy.plan import make_plan
from hushprompt.privacy.sampling import DisjointSampler, PoissonSampler
from hushprompt.privacy.shares import ShareTerms


def plan_of(unit="example", sampler=None, num_clients=3, **privacy):
    given = {"epsilon": 2.0, "delta": 1e-5, "audience": "server", "noise_at": "shares", "noise_source": "seeded"}
    config = PrivacyConfig(**given, privacy_unit=unit, rounding=0.0, **privacy)
    sampler = sampler or DisjointSampler(steps_per_round=1)
    sizes = [500] * num_clients
    return make_plan(config, sampler, channels=frozenset({Channel.GLOBAL}), num_rounds=5, client_sizes=sizes)


def bound(plan, num_canaries=3000):
    found = audit_audience(plan, Audience.SERVER, num_canaries=num_canaries, rng=np.random.default_rng(5))
    return max(result.epsilon_lower_bound for result in found)


@pytest.mark.parametrize(("unit", "num_canaries"), [("example", 3000), ("client", 1000)])
def test_the_bound_comes_near_the_claim_and_stays_below_it(unit, num_canaries):
    assert 0.9 < bound(plan_of(unit), num_canaries) <= 2.0


def test_sampled_batches_and_adaptive_norms_stay_below_the_claim():
    sampler = PoissonSampler(sampling_prob=0.2)
    assert bound(plan_of(sampler=sampler, adaptive_quantile=0.5), 1000) <= 2.0


def missing(size, rng, read=None):
    return np.zeros(size, dtype=np.int64)


def test_missing_shares_are_caught(monkeypatch):
    monkeypatch.setattr(base, "share_of_noise", missing)
    assert bound(plan_of(), 1000) > 2.0


def test_a_client_that_adds_no_share_is_caught(monkeypatch):
    share, calls = base.share_of_noise, iter(range(10**6))
    monkeypatch.setattr(
        base, "share_of_noise", lambda n, *given: missing(n, *given) if next(calls) % 2 else share(n, *given)
    )
    assert bound(plan_of()) > 2.0


def test_counting_the_share_of_a_client_that_tells_the_server_is_caught(monkeypatch):
    """Two of three know nothing of each other's noise, and shares are planned for all three."""
    plan, honest = plan_of(), ShareTerms.honest_among
    secret = honest(plan.terms(), 3)
    monkeypatch.setattr(ShareTerms, "honest_among", lambda self, count: count)
    monkeypatch.setattr(type(plan), "terms", lambda self: Told(secret))
    assert bound(plan, 6000) > 2.0


class Told:
    """How many shares stay secret, whatever the grid was made for."""

    def __init__(self, number):
        self.number = number

    def honest_among(self, count):
        return self.number


def world_of(toy_values, tmp_path, **privacy):
    values = {
        **toy_values,
        "sampling": {"name": "disjoint", "steps_per_round": 1},
        "partition": {"name": "iid", "num_clients": 4, "num_shots": 2},
        "method": {"name": "class_statistics", "metric": toy_metric()},
        "privacy": {"epsilon": 1.0, "delta": 1e-3, "noise_at": "shares", "rounding": 0.0, **privacy},
        "references": [],
        "runtime": {"cache_dir": str(tmp_path / "cache")},
    }
    config = configs.parse(values)
    dataset = config.data.load()
    partition = make_partition(config, dataset)
    (arm,) = budget_arms(config, (), client_sizes(partition), declared_classes(config, dataset.class_names))
    federation = assemble(config, load_model(config, dataset, [arm]), dataset, partition, lambda *_: None)
    return World(config, federation, candidates_of(federation, 1)), arm


def seen_of(world, arm, monkeypatch, seeds):
    """Noise on one client's sum in the total, and in what a server has with its clients, over the planned noise."""
    steps = []
    close = Watch._close

    def spy(self):
        if self._step is not None and self._step.total is not None:
            own = self._upload.value.flatten().double() / self._norm
            steps.append([each - own for each in (self._step.total, self._step.at_server)])
        close(self)

    monkeypatch.setattr(Watch, "_close", spy)
    is_in = np.ones(len(world.candidates.indices), dtype=bool)
    for seed in seeds:
        world.train(arm, is_in, seed, judges=True)
    planned = arm.plan.release_plan.noise_multipliers[Channel.GLOBAL]
    return [float(torch.cat([step[which] for step in steps]).std()) / planned for which in range(2)]


def test_a_server_takes_out_what_its_own_clients_add_and_the_planned_noise_is_left(toy_values, tmp_path, monkeypatch):
    world, arm = world_of(toy_values, tmp_path, max_colluding=2)
    total, at_server = seen_of(world, arm, monkeypatch, range(8))
    assert at_server == pytest.approx(1.0, rel=0.08)
    assert total == pytest.approx(math.sqrt(4 / 2), rel=0.08)


def test_an_auditor_on_the_servers_side_sees_members_without_noise(toy_values, tmp_path):
    world, arm = world_of(toy_values, tmp_path, epsilon=math.inf)
    is_in = np.arange(len(world.candidates.indices)) < 2
    _, watch = world.train(arm, is_in, 99, judges=True)
    assert np.array_equal(watch.scores(Audience.SERVER) > 0, is_in)
    assert np.array_equal(watch.scores(Audience.PUBLIC) > 0, is_in)


def test_whole_clients_are_canaries_with_shares_too(toy_values, tmp_path):
    values = {
        **toy_values,
        "partition": {"name": "disjoint_classes", "num_clients": 3},
        "method": {"name": "promptfl", "num_ctx": 4},
        "privacy": {
            "epsilon": 1.0,
            "delta": 1e-3,
            "noise_at": "shares",
            "privacy_unit": "client",
            "audience": "public",
        },
    }
    config = configs.parse({**values, "references": []})
    (arm,) = budget_arms(config, (), client_sizes(make_partition(config, config.data.load())), None)
    assert has_client_canaries(config, arm)
