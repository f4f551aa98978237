import math

import numpy as np
import pytest
import torch

from hushprompt.data.partition import ClientShard, Partition
from hushprompt.evaluation.evaluate import evaluate
from hushprompt.evaluation.splits import client_splits

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
    assert scores.confusion_local.tolist() == [[2, 0, 0], [0, 2, 0], [0, 1, 1]]
    # client 0 says 0 of all four others; client 1 is right on 0, 0, 2 and says 0 of a 2; client 2 says 1 of all four
    assert scores.confusion_neighbor.tolist() == [[2, 2, 0], [2, 2, 0], [3, 0, 1]]


def test_a_client_without_test_images_is_left_out_of_the_means():
    scores = evaluate(lambda _: torch.eye(3)[LABELS], LABELS, client_splits(partition([0, 1, 2, 3, 4, 5], []), "test"))
    assert math.isnan(scores.clients[1].local)
    assert scores.local == scores.worst_client == 1.0
    assert scores.neighbor == 1.0
    assert scores.confusion_local.tolist() == scores.confusion_neighbor.tolist() == (2 * torch.eye(3)).tolist()
