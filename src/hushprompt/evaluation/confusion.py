"""Confusion matrix: predictions counted by true and predicted class, over all clients' prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from torch import Tensor

from hushprompt.evaluation.splits import ClientSplit


@dataclass(frozen=True)
class Confusion:
    """Counts by true class (row) and predicted class (column)."""

    local: Int[np.ndarray, "c c"]
    """On the clients' own images; every image counts once."""
    neighbor: Int[np.ndarray, "c c"]
    """On the other clients' images; an image counts once for each other client."""


def confusion(
    predict_fn: Callable[[int], Int[np.ndarray, " n"]],
    labels: Int[Tensor, " n"],
    splits: tuple[ClientSplit, ...],
    *,
    num_classes: int,
    map_fn: Callable[..., Iterable[Int[np.ndarray, " n"]]] = map,
) -> Confusion:
    """Count what every client's prompt takes its own and the other clients' images for.

    Args:
        predict_fn: gives what a client's prompt takes all images of the evaluation split for; called once a client.
        labels: [n] of the evaluation split; one that is no column of the logits belongs to nobody's image.
        splits: each client's local and neighbor images.
        num_classes: number of classes c that compete.
        map_fn: goes through the clients as `map` does.
    """
    true = labels.numpy()
    local, everyone = np.zeros((2, num_classes, num_classes), dtype=np.int64)
    for split, predicted in zip(splits, map_fn(predict_fn, [split.client_id for split in splits]), strict=True):
        local += _counts(true[split.local], predicted[split.local], num_classes)
        everyone += _counts(true[split.everyone], predicted[split.everyone], num_classes)
    return Confusion(local=local, neighbor=everyone - local)


def _counts(true: Int[np.ndarray, " m"], predicted: Int[np.ndarray, " m"], num_classes: int) -> Int[np.ndarray, "c c"]:
    pairs = np.bincount(true * num_classes + predicted, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)
