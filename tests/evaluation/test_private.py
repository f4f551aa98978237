import math

import numpy as np
import pytest
import torch

from hushprompt.data.partitions.base import ClientShard, Partition
from hushprompt.evaluation.evaluate import evaluate, mean_scores
from hushprompt.evaluation.private import count_right, scores_of
from hushprompt.evaluation.splits import client_splits
from hushprompt.privacy.metrics import RightAnswers

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def splits_of(*parts):
    shards = (ClientShard(k, (), {"test": np.array(part, dtype=np.int64)}) for k, part in enumerate(parts))
    return client_splits(Partition(tuple(shards)), "test")


def test_without_noise_counts_give_the_scores_of_an_exact_evaluation():
    logits = torch.from_numpy(np.random.default_rng(2).normal(size=(3, 6, 3)))
    splits = splits_of([0, 1, 2], [3, 5], [4])
    exact = evaluate(lambda client_id: logits[client_id], LABELS, splits)
    scores = scores_of(count_right(lambda client_id: logits[client_id], LABELS, splits), splits)
    for name in ("local", "neighbor", "harmonic_mean", "worst_client"):
        assert getattr(scores, name) == pytest.approx(getattr(exact, name))
    for mine, theirs in zip(scores.clients, exact.clients, strict=True):
        assert (mine.local, mine.neighbor) == pytest.approx((theirs.local, theirs.neighbor))


def test_accuracies_stay_between_0_and_1_and_means_are_not_biased_by_that():
    splits = splits_of([0, 1], [2, 3], [4, 5])
    scores = scores_of(RightAnswers(local=np.array([-2.0, 5.0, 1.0]), neighbor=np.array([9.0, 1.0, 2.0])), splits)
    assert [client.local for client in scores.clients] == [0.0, 1.0, 0.5]
    assert [client.neighbor for client in scores.clients] == [1.0, 0.25, 0.5]
    assert scores.local == pytest.approx(4 / 6)
    assert scores.neighbor == 1.0
    assert scores.harmonic_mean == pytest.approx(2 * (4 / 6) / (4 / 6 + 1))
    assert scores.worst_client == 0.0


def test_what_would_be_another_release_is_not_there_and_no_image_is_no_accuracy():
    splits = splits_of([0, 1, 2, 3, 4, 5], [])
    scores = scores_of(RightAnswers(local=np.array([3.0, 7.7]), neighbor=np.array([0.4, 6.0])), splits)
    assert scores.per_class == ()
    assert math.isnan(scores.calibration_error)
    assert [math.isnan(client.local) for client in scores.clients] == [False, True]
    assert [math.isnan(client.neighbor) for client in scores.clients] == [True, False]
    assert (scores.local, scores.neighbor, scores.worst_client) == (0.5, 1.0, 0.5)
    assert mean_scores([scores, scores]).local == 0.5
