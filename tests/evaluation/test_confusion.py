import numpy as np
import pytest
import torch

from hushprompt.data.partitions.base import ClientShard, Partition
from hushprompt.evaluation.metrics import confusion
from hushprompt.evaluation.splits import client_splits

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
SAYS = dict(enumerate(np.array([[0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 2, 0], [1, 1, 1, 1, 2, 1]])))


def splits(*parts):
    shards = (ClientShard(k, (), {"test": np.array(part, dtype=np.int64)}) for k, part in enumerate(parts))
    return client_splits(Partition(tuple(shards)), "test")


def test_predictions_are_counted_by_hand():
    found = confusion(SAYS.__getitem__, LABELS, splits([0, 1], [2, 3], [4, 5]), num_classes=3)
    assert found.local.tolist() == [[2, 0, 0], [0, 2, 0], [0, 1, 1]]
    # client 0 says 0 of all four others; client 1 is right on 0, 0 and one 2; client 2 says 1 of all four
    assert found.neighbor.tolist() == [[2, 2, 0], [2, 2, 0], [3, 0, 1]]


@pytest.mark.parametrize("parts", [[[]], [[], []], [[0, 1]]])
def test_nothing_is_taken_for_nothing(parts):
    found = confusion(SAYS.__getitem__, LABELS, splits(*parts), num_classes=3)
    assert found.neighbor.shape == (3, 3)
    assert not found.neighbor.any(), "one client has no neighbors"
    assert found.local.sum() == sum(map(len, parts))


def test_a_client_without_images_and_images_of_nobody_count_nowhere():
    labels = torch.tensor([0, 1, 2, 3])  # 3 is no column
    found = confusion(lambda _: np.array([0, 1, 1, 0]), labels, splits([0, 1, 2], []), num_classes=3)
    assert found.local.tolist() == found.neighbor.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
