"""Whole clients, there or not, in the real federation: the bound is below the claim, near it, and finds broken code."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from hushprompt.audits.audit import AuditSettings, budget_arms, measure
from hushprompt.audits.client_canaries import ClientWatch, has_client_canaries
from hushprompt.audits.shadows import ShadowTrainer
from hushprompt.audits.watch import ABSENT, TrainingObserver
from hushprompt.audits.world import start, train_watched
from hushprompt.config import parse as configs
from hushprompt.federation.setup import client_sizes, make_partition
from hushprompt.privacy.mechanisms import gaussian as mechanisms


def config_of(toy_values, tmp_path, epsilon=8.0):
    """Four clients of 18 images, all of them in every batch, with gradients far beyond the clip norm."""
    privacy = {"privacy_unit": "client", "audience": "public", "epsilon": epsilon, "delta": 1e-5}
    return configs.parse(
        {
            **toy_values,
            "data": {"name": "toy", "num_classes": 12, "num_train": 6},
            "partition": {"name": "disjoint_classes", "num_clients": 4},
            "sampling": {"name": "disjoint", "steps_per_round": 1},
            "method": {"name": "promptfl", "num_ctx": 8},
            "privacy": {**privacy, "clip_norm_global": 1e-3},
            "references": [],
            "runtime": {"cache_dir": str(tmp_path / "cache")},
        }
    )


@pytest.fixture
def config(toy_values, tmp_path):
    return config_of(toy_values, tmp_path)


def audited(config, folder, epsilon, num_canaries):
    settings = AuditSettings(epsilons=(epsilon,), num_canaries=num_canaries, num_gradient_canaries=0)
    record = measure(config, settings, folder, lambda done, total: None, 1)
    (one,) = (one for one in record.budgets[0].audiences if one.audience == "public")
    assert record.num_shadows == math.ceil(num_canaries / 4)
    assert one.canaries[0].result.num_canaries == 4 * record.num_shadows
    return record, one


def test_the_bound_comes_near_the_claim_and_stays_below_it(config, tmp_path):
    _, one = audited(config, tmp_path, 8.0, 120)
    assert one.claimed["epsilon"] == pytest.approx(8.0, rel=1e-3)
    assert 0.15 * 8 < one.lower_bound <= one.claimed["epsilon"]


def test_without_noise_every_guess_is_right(config, tmp_path):
    record, one = audited(config, tmp_path, math.inf, 60)
    assert one.canaries[0].result.num_correct == one.canaries[0].result.num_guesses == 60
    assert record.power["public"].has_power == {"mechanism": None, "end_to_end": True, "attack": None}


def test_clients_whose_examples_are_clipped_one_by_one_are_caught(config, tmp_path, monkeypatch):
    monkeypatch.setattr(mechanisms, "as_one_contribution", lambda grads: grads)
    _, one = audited(config, tmp_path, 1.0, 60)
    assert one.is_contradicted


def test_noise_that_a_server_forgets_is_caught(config, tmp_path, monkeypatch):
    monkeypatch.setattr(mechanisms, "add_gaussian", lambda value, std, rng: value)
    _, one = audited(config, tmp_path, 1.0, 60)
    assert one.is_contradicted


def federation_of(config):
    arms = budget_arms(config, (), client_sizes(make_partition(config, config.data.load())))
    return ShadowTrainer(config, arms, 0, 0).world.federation, arms[0]


def test_what_clients_are_said_to_add_is_what_is_released(toy_values, tmp_path):
    config = config_of(toy_values, tmp_path, math.inf)
    federation, arm = federation_of(config)
    state = start(config, federation, arm)
    watch = ClientWatch(federation, arm, state.personal, np.random.default_rng(0))
    train_watched(config, federation, arm, state, watch)
    assert len(watch.sums) == arm.num_rounds
    for total, added in zip(watch.sums, watch.added, strict=True):
        assert added.norm(dim=1).max() <= 1
        torch.testing.assert_close(added.sum(dim=0), total, rtol=1e-4, atol=1e-5)


def test_a_client_that_is_out_leaves_no_trace(config):
    federation, arm = federation_of(config)
    stored, indices = federation.train_features["pooled"], federation.partition.clients[2].indices["train"]
    labels, features = federation.train_labels.clone(), stored.array.copy()
    labels[torch.from_numpy(np.asarray(indices))] = ABSENT
    features[indices] *= -1  # whatever it was
    others = {"pooled": dataclasses.replace(stored, array=features)}
    ends = [
        train_watched(config, changed, arm, start(config, changed, arm), TrainingObserver()).shared.context
        for changed in (
            dataclasses.replace(federation, train_labels=labels),
            dataclasses.replace(federation, train_labels=labels, train_features=others),
            federation,
        )
    ]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_clients_are_canaries_only_where_the_public_sees_their_noisy_sum(config):
    _, arm = federation_of(config)
    assert has_client_canaries(config, arm)
    for section, changed in (
        ("privacy", {"privacy_unit": "example"}),
        ("privacy", {"noise_at": "client"}),
        ("training", {"local_steps": 2}),
    ):
        value = dataclasses.replace(getattr(config, section), **changed)
        assert not has_client_canaries(dataclasses.replace(config, **{section: value}), arm)
