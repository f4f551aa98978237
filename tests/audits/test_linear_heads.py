"""Attacks on what methods with a linear head publish: they find everybody without noise, and with noise what is claimed
at most."""

import dataclasses
import functools
import math
import pickle

import numpy as np
import pytest

from helpers.toy_metric import toy_metric
from hushprompt.audits.audit import AuditSettings, budget_arms, measure
from hushprompt.audits.canaries import with_canaries
from hushprompt.audits.world import World, candidates_of
from hushprompt.config import parse as configs
from hushprompt.errors import ConfigError
from hushprompt.federation.setup import assemble, client_sizes, declared_classes, load_model, make_partition
from hushprompt.methods import class_statistics
from hushprompt.privacy.config import Audience
from hushprompt.statistics.contexts import fit_class_contexts

EMBEDDED = {
    "seed": 5,
    "backbone": {"name": "emoji_clip"},
    "data": {"name": "emoji100"},
    "partition": {"name": "disjoint_classes", "num_clients": 10, "num_shots": 2},
    "sampling": {"name": "disjoint", "steps_per_round": 1},
    "training": {"num_rounds": 2},
    "privacy": {"epsilon": 2.0, "delta": 1e-5, "audience": "public"},
}
ATTACKED = ("class_row", "likelihood")


def audited(values, folder, **settings):
    settings = {"num_shadows": 4, "num_canaries": 0, "num_gradient_canaries": 0, "attacks": ATTACKED, **settings}
    return measure(configs.parse(values), AuditSettings(**settings), folder, lambda done, total: None, 1)


@pytest.mark.parametrize(
    ("method", "epsilons"),
    [
        ("class_statistics", (1.0, 8.0, math.inf)),
        ("class_means", (2.0, math.inf)),
        ("least_squares", (2.0, math.inf)),
        ("linear_probe", (2.0, math.inf)),
    ],
)
def test_without_noise_members_are_found_and_with_noise_no_more_than_is_claimed(tmp_path, method, epsilons):
    record = audited({**EMBEDDED, "method": {"name": method}}, tmp_path, epsilons=epsilons)
    *noisy, bare = (one for budget in record.budgets for one in budget.audiences)
    row, ratio = bare.attacks
    assert [row.attack, ratio.attack] == ["class row", "likelihood"]
    assert ratio.auc.value > 0.99
    assert row.auc.value > 0.8
    assert ratio.bound.epsilon_lower_bound > 2
    assert ratio.bound.bound == "f_dp_gaussian"
    assert record.power["public"].has_power["attack"]
    for one, epsilon in zip(noisy, epsilons, strict=False):
        assert one.claimed["epsilon"] == pytest.approx(epsilon, rel=1e-3)
        assert one.lower_bound == max(attack.bound.epsilon_lower_bound for attack in one.attacks) <= epsilon
        assert not one.is_contradicted


def toy_values(**method):
    return {
        **EMBEDDED,
        "backbone": {"name": "toy"},
        "data": {"name": "toy"},
        "partition": {"name": "disjoint_classes", "num_clients": 3, "num_shots": 5},
        "method": {"name": "class_statistics", "metric": toy_metric(), **method},
    }


@pytest.mark.parametrize("form", ["head", "embeddings", "contexts"])
def test_every_form_is_attacked_by_what_it_says_and_by_mislabelled_images(tmp_path, monkeypatch, form):
    monkeypatch.setattr(class_statistics, "fit_class_contexts", functools.partial(fit_class_contexts, num_steps=2))
    attacks = ("lira", "rmia", "gradient_cosine", *ATTACKED)
    record = audited(toy_values(form=form), tmp_path, attacks=attacks, num_canaries=10, epsilons=(math.inf,))
    ((public,),) = (budget.audiences for budget in record.budgets)
    found = {attack.attack: attack.bound is not None for attack in public.attacks}
    assert list(found) == ["LiRA online", "LiRA offline", "RMIA offline", "class row", "likelihood"]
    assert [name for name, has_bound in found.items() if not has_bound] == ["RMIA offline"]
    assert [one.sees for one in public.canaries] == ["all releases", "global prompt"]
    assert record.num_candidates == 10


def world_of(values):
    config = configs.parse(values)
    dataset = config.data.load()
    partition = make_partition(config, dataset)
    declared = declared_classes(config, dataset.class_names)
    (arm,) = budget_arms(config, (), client_sizes(partition), declared)
    federation = assemble(config, load_model(config, dataset, [arm]), dataset, partition, lambda *_: None)
    return World(config, federation, candidates_of(federation, 1)), arm


@pytest.mark.parametrize("noise_at", ["server", "client"])
@pytest.mark.parametrize("partition", ["disjoint_classes", "iid"])
def test_an_auditor_who_knows_all_others_sees_one_clients_sum_alone(noise_at, partition):
    """Whatever the seed of a training: its clients have the classes that the plan knows of."""
    values = toy_values()
    values["privacy"] = {**values["privacy"], "epsilon": math.inf, "noise_at": noise_at}
    values["partition"] = {"name": partition, "num_clients": 3, "num_shots": 2}
    world, arm = world_of(values)
    is_in = np.arange(len(world.candidates.indices)) < 2
    state, watch = world.train(arm, is_in, 99, judges=True)
    assert np.array_equal(watch.scores(Audience.PUBLIC) > 0, is_in)
    assert (watch.scores(Audience.SERVER) is not None) == (noise_at == "client")
    nobody, _ = world.train(arm, np.zeros_like(is_in), 99)
    moved = (state.shared.sums - nobody.shared.sums).norm(dim=1)[1:] > 1e-4
    assert set(moved.nonzero().flatten().tolist()) >= set(world.candidates.labels[:2].tolist())
    assert world.declared == (arm.method._of.client_classes[1] if partition == "disjoint_classes" else None)


def test_an_arm_goes_to_worker_processes():
    _, arm = world_of(toy_values())
    assert pickle.loads(pickle.dumps(arm)).method._of == arm.method._of


def test_wrong_labels_are_classes_that_the_client_may_have():
    world, _ = world_of(toy_values())
    labels = with_canaries(world, 10, of_declared=True).candidates.labels
    assert set(labels.tolist()) == set(world.declared)
    alone = dataclasses.replace(world, federation=dataclasses.replace(world.federation, declared=((0,),) * 3))
    with pytest.raises(ConfigError, match=r"one class alone can have no wrong label\. Add --canaries 0"):
        with_canaries(alone, 10, of_declared=True)
