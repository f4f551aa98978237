"""Groups as canaries: of the mechanism alone, and of mislabelled images end to end."""

import dataclasses

import numpy as np
import pytest
import torch

from helpers.toy_metric import toy_metric
from hushprompt.audits.audit import AuditSettings, measure
from hushprompt.audits.canaries import with_canaries
from hushprompt.audits.mechanism_audit import audit_audience
from hushprompt.audits.suite import Scored, by_group
from hushprompt.audits.world import World, candidates_of
from hushprompt.config import parse as configs
from hushprompt.errors import ConfigError
from hushprompt.federation.planning import plan_arms
from hushprompt.federation.setup import assemble, client_sizes, load_model, make_partition
from hushprompt.privacy.config import Audience, Channel, PrivacyConfig
from hushprompt.privacy.mechanisms import grouped
from hushprompt.privacy.plan import make_plan
from hushprompt.privacy.sampling import DisjointSampler, EveryExample

GLOBAL = frozenset({Channel.GLOBAL})


def plan_of(epsilon, **release):
    config = PrivacyConfig(noise_source="seeded", epsilon=epsilon, audience=Audience.PUBLIC, privacy_unit="group")
    sampler = EveryExample(steps_per_round=2) if release else DisjointSampler(steps_per_round=1)
    rounds = 1 if release else 3
    return make_plan(config, sampler, channels=GLOBAL, num_rounds=rounds, client_sizes=[50], **release)


SUMS = {"mechanism": "class_sums", "parts": (0.3, 0.7)}
as_it_is = {"gradients": {}, "class sums": SUMS}


@pytest.mark.parametrize("release", as_it_is)
def test_groups_are_canaries_of_several_rows_and_the_bound_stays_below_the_claim(release):
    rng = np.random.default_rng(4)
    found = audit_audience(plan_of(4.0, **as_it_is[release]), Audience.PUBLIC, num_canaries=1000, norm=100.0, rng=rng)
    assert 2.0 < max(result.epsilon_lower_bound for result in found) <= 4.0


def one_by_one(monkeypatch):
    """Clip examples where groups are to be clipped."""
    monkeypatch.setattr(grouped, "group_contributions", lambda grads, groups, clip_norm: grads)
    monkeypatch.setattr(grouped, "group_shares", lambda groups: torch.ones(len(groups), dtype=torch.float64))


@pytest.mark.parametrize("release", as_it_is)
def test_groups_whose_examples_are_clipped_one_by_one_are_caught(release, monkeypatch):
    one_by_one(monkeypatch)
    plan = plan_of(1.0, **as_it_is[release])
    found = audit_audience(plan, Audience.PUBLIC, num_canaries=1000, rng=np.random.default_rng(4))
    assert max(result.epsilon_lower_bound for result in found) > 1.0


METHODS = {
    "promptfl": {"name": "promptfl", "num_ctx": 8},
    "linear_probe": {"name": "linear_probe"},
    "class_statistics": {"name": "class_statistics", "metric": toy_metric()},
}


def config_of(toy_values, tmp_path, method="promptfl", epsilon=8.0, size=6):
    """One client with 24 groups of 6 images, or 120 of 12, in every batch, with gradients far beyond the clip norm."""
    num_train = {6: 24 if method == "class_statistics" else 12, 12: 120}[size]
    wide = {} if method == "class_statistics" else {"feature_dim": 64, "token_width": 32}
    return configs.parse(
        {
            **toy_values,
            "backbone": {"name": "toy", **wide},
            "data": {
                "name": "toy", "num_classes": 12 if wide else 6, "num_train": num_train, "group_size": size,
            },
            "partition": {"name": "iid", "num_clients": 1},
            "sampling": {"name": "disjoint", "steps_per_round": 1},
            "method": METHODS[method],
            "training": {"num_rounds": 3},
            "privacy": {
                "privacy_unit": "group", "audience": "public", "epsilon": epsilon, "delta": 1e-5,
                "clip_norm_global": 1e-3, "max_group_examples": size,
            },
            "references": [],
            "runtime": {"cache_dir": str(tmp_path / "cache")},
        }
    )  # fmt: skip


def world_of(config):
    dataset = config.data.load()
    partition = make_partition(config, dataset)
    (arm,) = plan_arms(config, client_sizes(partition))
    federation = assemble(config, load_model(config, dataset, [arm]), dataset, partition, lambda *_: None)
    return World(config, federation, candidates_of(federation, 0)), arm


def audited(config, folder, num_canaries=24):
    settings = AuditSettings(num_canaries=num_canaries, num_gradient_canaries=0, attacks=())
    record = measure(config, settings, folder, lambda done, total: None, 1)
    (one,) = (one for one in record.budgets[0].audiences if one.audience == "public")
    return record, one


@pytest.mark.parametrize(("method", "least"), [("promptfl", 2.0), ("linear_probe", 3.0), ("class_statistics", 0.4)])
def test_groups_of_mislabelled_images_are_found_without_noise_and_hidden_by_it(toy_values, tmp_path, method, least):
    record, one = audited(config_of(toy_values, tmp_path, method, 1e6), tmp_path / "clear")
    assert (record.privacy_unit, record.num_candidates, record.num_shadows) == ("group", 24, 0)
    releases = next(canary for canary in one.canaries if canary.sees == "all releases")
    assert releases.result.num_canaries == 24
    assert releases.mean_gap > least
    assert releases.result.num_correct >= 19
    _, one = audited(config_of(toy_values, tmp_path, method, 1.0), tmp_path / "noisy")
    assert one.lower_bound <= one.claimed["epsilon"]


def test_a_plan_that_clips_examples_instead_of_groups_is_caught_end_to_end(toy_values, tmp_path, monkeypatch):
    one_by_one(monkeypatch)
    _, one = audited(config_of(toy_values, tmp_path, "linear_probe", 1.0, size=12), tmp_path, 120)
    assert one.is_contradicted


@pytest.mark.parametrize(("epsilon", "least"), [(1e6, 0.75), (1.0, 0.0)])
def test_attacks_tell_whole_groups_apart_without_noise_and_stay_below_the_claim_with_it(
    toy_values, tmp_path, epsilon, least
):
    attacks = ("lira", "class_row", "likelihood")
    settings = AuditSettings(num_canaries=0, num_gradient_canaries=0, num_shadows=6, attacks=attacks)
    record = measure(config_of(toy_values, tmp_path, "linear_probe", epsilon), settings, tmp_path, lambda *_: None, 1)
    (one,) = record.budgets[0].audiences
    assert len(one.attacks) == 4
    for attack in one.attacks:
        assert attack.num_members + attack.num_non_members == 6 * 24, "a coin for each group"
        assert attack.auc.value > least
        assert attack.bound.epsilon_lower_bound <= one.claimed["epsilon"]


def test_a_group_that_is_out_leaves_no_trace(toy_values, tmp_path):
    world, arm = world_of(config_of(toy_values, tmp_path))
    is_in = np.arange(24) % 2 == 0
    state, _ = world.train(arm, is_in, 3)
    others = dataclasses.replace(world, candidates=dataclasses.replace(
        world.candidates, labels=np.where(is_in[world.candidates.groups], world.candidates.labels, 0)
    ))  # fmt: skip
    again, _ = others.train(arm, is_in, 3)
    assert torch.equal(state.shared.context, again.shared.context)
    everyone, _ = world.train(arm, np.ones(24, dtype=bool), 3)
    assert not torch.equal(state.shared.context, everyone.shared.context)


def test_canaries_are_whole_groups_with_one_coin_each(toy_values, tmp_path):
    world, _ = world_of(config_of(toy_values, tmp_path))
    audited = with_canaries(world, 10).candidates
    assert audited.num_coins == 10
    assert np.bincount(audited.groups).tolist() == [6] * 10
    own = dict(zip(world.candidates.indices.tolist(), world.candidates.labels.tolist(), strict=True))
    assert all(
        own[index] != label for index, label in zip(audited.indices.tolist(), audited.labels.tolist(), strict=True)
    )
    assert audited.by_coin(torch.from_numpy(audited.groups).float()).tolist() == list(range(10))
    with pytest.raises(ConfigError, match="at most the 24 groups of client 0"):
        with_canaries(world, 25)


def test_what_is_said_of_a_group_is_the_mean_over_its_images_and_over_no_others():
    said = Scored("loss", "global prompt", np.array([[-np.inf, 1.0, 3.0, 5.0]]), None)
    assert by_group(said, np.array([1, 0, 0, 2])).values.tolist() == [[2.0, -np.inf, 5.0]]
