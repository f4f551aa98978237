"""Evaluation counts that leave: what one image moves, what noise it meets, and what is claimed for both."""

import math

import numpy as np
import pytest
import torch

from hushprompt.data.partitions.base import ClientShard, Partition
from hushprompt.errors import ConfigError, PrivacyError
from hushprompt.evaluation.private import count_right
from hushprompt.evaluation.splits import client_splits
from hushprompt.privacy import accounting, metrics
from hushprompt.privacy.metrics import RightAnswers, make_metrics_plan
from hushprompt.privacy.releases import GaussianReleases

SIZES = [4, 1, 3, 0, 5]


def plan_of(num_clients=5, sizes=None, **changes):
    settings = {"epsilon": 1.0, "delta": 1e-3, "num_releases": 4, "noise_source": "seeded"}
    return make_metrics_plan(**{**settings, "client_sizes": sizes or [20] * num_clients, **changes})


def counts_of(says, labels, slots):
    """Count with the slots of each client, some of which may be empty."""
    shards = tuple(
        ClientShard(client_id, (), {"test": np.array(own, dtype=np.int64)}) for client_id, own in enumerate(slots)
    )
    logits = torch.nn.functional.one_hot(says, 3).float()
    return count_right(lambda client_id: logits[client_id], labels, client_splits(Partition(shards), "test"))


def moves():
    """Give how each image moves both vectors of counts when its slot is emptied; once with every answer right."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 3, size=sum(SIZES)))
    slots = [list(own) for own in np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])]
    for says in (labels.expand(5, -1), torch.from_numpy(rng.integers(0, 3, size=(5, sum(SIZES))))):
        whole = counts_of(says, labels, slots)
        for client_id, own in enumerate(slots):
            for image in own:
                emptied = [[i for i in other if i != image] for other in slots]
                without = counts_of(says, labels, emptied)
                yield client_id, whole.local - without.local, whole.neighbor - without.neighbor


def test_one_image_moves_its_own_local_count_and_every_other_neighbor_count():
    largest = 0.0
    for client_id, local, neighbor in moves():
        others = np.arange(5) != client_id
        assert not local[others].any()
        assert neighbor[client_id] == 0
        assert set(local) | set(neighbor) <= {0, 1}
        assert np.linalg.norm(local) <= metrics.LOCAL_SENSITIVITY
        assert np.linalg.norm(neighbor) <= metrics.neighbor_sensitivity(5)
        largest = max(largest, float(np.linalg.norm([*local, *neighbor])))
    assert largest == pytest.approx(math.sqrt(5)), "an image that everyone gets right moves all five clients' counts"


def test_what_one_image_moves_in_units_of_noise_is_what_the_budget_allows():
    """The exact curve of the worst image, from the brute force alone, meets the target and comes close to it."""
    plan = plan_of()
    worst = max(
        float(np.sum((local / plan.std_local) ** 2) + np.sum((neighbor / plan.std_neighbor) ** 2))
        for _, local, neighbor in moves()
    )
    alone = GaussianReleases(num_steps=4, noise_multiplier=worst**-0.5)
    spent = accounting.epsilon(alone, delta=1e-3, relation="add_remove")
    assert spent <= 1.0
    assert spent == pytest.approx(1.0, rel=1e-4)
    assert spent == pytest.approx(plan.guarantee().epsilon, rel=1e-6)


@pytest.mark.parametrize("source", ["seeded", "secure"])
def test_released_counts_are_the_true_ones_with_the_planned_noise(source):
    num_clients = 4000
    plan = plan_of(num_clients, noise_source=source)
    rng = np.random.default_rng(7)
    true = RightAnswers(local=rng.integers(0, 20, num_clients), neighbor=rng.integers(0, 20 * 3999, num_clients))
    released = plan.release(true, np.random.default_rng(8))
    for name, std in (("local", plan.std_local), ("neighbor", plan.std_neighbor)):
        noise = (getattr(released, name) - getattr(true, name)) / std
        assert abs(noise.mean()) < 5 / math.sqrt(num_clients)
        assert noise.std() == pytest.approx(1, abs=5 / math.sqrt(2 * num_clients))
    both = np.corrcoef(released.local - true.local, released.neighbor - true.neighbor)
    assert abs(both[0, 1]) < 5 / math.sqrt(num_clients)


def test_clients_of_one_size_have_equal_noise_on_both_accuracies():
    plan = plan_of(10)
    assert plan.std_local == pytest.approx(plan.std_neighbor / 9)


def test_every_release_costs_and_fewer_cost_less():
    plan = plan_of(num_releases=9)
    assert plan.guarantee().releases.num_steps == 9
    assert plan.guarantee(4).epsilon < plan.guarantee().epsilon <= 1.0
    assert plan_of(num_releases=36).std_local == pytest.approx(2 * plan.std_local, rel=1e-4)
    assert plan.guarantee(0).epsilon == 0.0


def test_a_client_alone_has_no_neighbor_and_all_of_the_budget():
    plan = plan_of(1)
    released = plan.release(RightAnswers(local=np.array([3]), neighbor=np.array([0])), np.random.default_rng(1))
    assert released.local[0] != 3
    assert released.neighbor.tolist() == [0.0]
    assert plan.std_neighbor == 0.0
    assert plan.guarantee().epsilon == pytest.approx(1.0, rel=1e-4)


def test_the_statement_names_unit_delta_relation_releases_and_accountant():
    said = plan_of().guarantee().statement()
    for part in ("at delta = 0.001", "one evaluation image of one client", "add_remove", "4 releases", "GDP"):
        assert part in said


def test_what_the_theorem_does_not_cover_is_refused():
    with pytest.raises(PrivacyError, match=r"metrics_delta must be below 1 / \(evaluation images of the largest"):
        plan_of(sizes=[3, 1000])
    with pytest.raises(ConfigError, match="metrics_epsilon must be a finite number"):
        plan_of(epsilon=math.inf)
    with pytest.raises(PrivacyError, match="planned for 5"):
        plan_of().release(RightAnswers(local=np.zeros(4), neighbor=np.zeros(4)), np.random.default_rng(0))
