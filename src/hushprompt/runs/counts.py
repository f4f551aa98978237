"""Counts of a run on disk: who has how many examples of which class, and which class was predicted for which."""

from __future__ import annotations

from typing import Any

from hushprompt.data.base import Dataset
from hushprompt.data.partitions.base import Partition
from hushprompt.evaluation.metrics import Confusion
from hushprompt.privacy.statements import COUNTS_NOT_PRIVATE
from hushprompt.runs import records
from hushprompt.runs.arm import Arm


def partition_record(dataset: Dataset, partition: Partition) -> dict[str, Any]:
    """Return `partition.json`: each client's name and its examples by split and class."""
    num_classes = len(dataset.class_names)
    return {
        "note": COUNTS_NOT_PRIVATE,
        "dataset": dataset.name,
        "class_names": list(dataset.class_names),
        "client_names": list(partition.client_names),
        **{
            name: records.sparse_rows(partition.class_counts(split.labels, num_classes, name))
            for name, split in dataset.splits.items()
        },
    }


def confusion_record(arm: Arm, counts: Confusion) -> dict[str, Any]:
    """Return a file of `confusion/`: predictions of one arm after its last round, by true and predicted class."""
    return {
        "arm": arm.label,
        "local": records.sparse_rows(counts.local),
        "neighbor": records.sparse_rows(counts.neighbor),
    }
