import dataclasses
import json
import math
import weakref

import numpy as np
import pytest
import torch

from hushprompt.data.partitions.base import ClientShard, Partition
from hushprompt.evaluation.evaluate import NewClasses, Scores, evaluate, mean_scores
from hushprompt.evaluation.splits import client_splits
from hushprompt.runs import records

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def partition(*parts):
    return Partition(
        tuple(ClientShard(k, (), {"test": np.array(part, dtype=np.int64)}) for k, part in enumerate(parts))
    )


def test_neighbor_images_are_all_images_of_the_other_clients():
    splits = client_splits(partition([0, 1], [2, 5], [3, 4]), "test")
    assert splits[1].local.tolist() == [2, 5]
    assert splits[1].neighbor.tolist() == [0, 1, 3, 4]


def test_scores_are_each_clients_own_and_the_others_counted_by_hand():
    says = {0: [0, 0, 0, 0, 0, 0], 1: [0, 0, 1, 1, 2, 0], 2: [1, 1, 1, 1, 2, 1]}
    logits = {client: torch.eye(3)[answers] for client, answers in says.items()}
    calls = []
    scores = evaluate(
        lambda client: calls.append(client) or logits[client],
        LABELS,
        client_splits(partition([0, 1], [2, 3], [4, 5]), "test"),
    )
    assert calls == [0, 1, 2]
    assert [c.local for c in scores.clients] == [1.0, 1.0, 0.5]
    assert [c.neighbor for c in scores.clients] == [0.0, 0.75, 0.5]
    assert scores.local == pytest.approx(2.5 / 3)
    assert scores.neighbor == pytest.approx(1.25 / 3)
    assert scores.harmonic_mean == pytest.approx(2 * scores.local * scores.neighbor / (scores.local + scores.neighbor))
    assert scores.worst_client == 0.5
    assert scores.per_class == (1.0, 1.0, 0.5)


def test_a_client_without_test_images_is_left_out_of_the_means():
    scores = evaluate(lambda _: torch.eye(3)[LABELS], LABELS, client_splits(partition([0, 1, 2, 3, 4, 5], []), "test"))
    assert math.isnan(scores.clients[1].local)
    assert scores.local == scores.worst_client == 1.0
    assert scores.neighbor == 1.0


def test_one_clients_logits_are_gone_before_the_next_ones_come():
    alive = weakref.WeakSet()

    def logits(_):
        value = torch.eye(3)[LABELS]
        assert len(alive) == 0
        alive.add(value)
        return value

    evaluate(logits, LABELS, client_splits(partition([0, 1], [2, 3], [4, 5]), "test"))


def test_all_clients_share_the_one_array_that_names_all_images():
    splits = client_splits(partition([0, 1], [2, 3], [4, 5]), "test")
    assert splits[0].everyone is splits[2].everyone


def test_images_that_nobody_has_are_not_scored_and_new_classes_are_among_themselves():
    labels = torch.tensor([0, 0, 1, 1, 2, 3])  # base classes 0 and 1; nobody has the images of 2 and 3
    base = torch.eye(2)[[0, 0, 1, 0, 0, 0]]
    new = NewClasses(lambda client: torch.eye(2)[[client, client]], labels[4:] - 2)
    scores = evaluate(lambda _: base, labels, client_splits(partition([0, 1], [2, 3]), "test"), new_classes=new)
    assert [(c.local, c.neighbor) for c in scores.clients] == [(1.0, 0.5), (0.5, 1.0)]
    assert [(c.base, c.new) for c in scores.clients] == [(0.75, 0.5), (0.75, 0.5)]
    assert scores.per_class == (1.0, 0.5)
    assert (scores.base, scores.new) == (0.75, 0.5)
    assert scores.base_new_harmonic_mean == pytest.approx(0.6)


def test_without_new_classes_there_is_no_such_figure():
    scores = evaluate(lambda _: torch.eye(3)[LABELS], LABELS, client_splits(partition([0, 1, 2], [3, 4, 5]), "test"))
    assert scores.base is scores.new is scores.base_new_harmonic_mean is scores.clients[0].base is None


def test_the_mean_of_rounds_is_the_mean_of_every_figure():
    splits = client_splits(partition([0, 1, 2, 3], [4], []), "test")
    right, wrong = torch.eye(3)[LABELS], torch.eye(3)[(LABELS + 1) % 3]
    first, second = (evaluate(lambda _, logits=logits: logits, LABELS, splits) for logits in (right, wrong))
    mean = mean_scores([first, first, second, first])
    assert (mean.local, mean.neighbor, mean.worst_client) == (0.75, 0.75, 0.75)
    assert [client.local for client in mean.clients[:2]] == [0.75, 0.75]
    assert math.isnan(mean.clients[2].local)
    assert [client.client_id for client in mean.clients] == [0, 1, 2]
    assert mean.per_class == (0.75, 0.75, 0.75)
    assert mean_scores([second]) is second
    again = records.from_json(Scores, json.loads(json.dumps(dataclasses.asdict(mean))))
    assert dataclasses.replace(again, clients=again.clients[:2]) == dataclasses.replace(mean, clients=mean.clients[:2])
