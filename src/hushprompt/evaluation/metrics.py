"""Metrics of predictions: pure functions of logits and labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
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


NUM_BINS = 15


def predicted_classes(logits: Float[Tensor, "n c"]) -> Int[np.ndarray, " n"]:
    """Class of the largest logit, in a form that is small enough to keep for many clients.

    >>> predicted_classes(torch.tensor([[1.0, 2.0], [3.0, 0.0]])).tolist()
    [1, 0]
    """
    classes: Int[np.ndarray, " n"] = logits.cpu().numpy().argmax(axis=1).astype(np.int32)  # a quarter of torch's time
    return classes


def accuracy(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> float:
    """Share of images whose largest logit is the label's; NaN without images.

    >>> accuracy(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([1, 1]))
    0.5
    """
    return float((logits.argmax(dim=1) == labels).double().mean())


def harmonic_mean(local: float, neighbor: float) -> float:
    """2 / (1/local + 1/neighbor), 0 if either is 0, and NaN if either is no number.

    >>> harmonic_mean(0.5, 0.25), harmonic_mean(0.5, math.nan)
    (0.3333333333333333, nan)
    """
    if math.isnan(local) or math.isnan(neighbor):
        return math.nan
    return 2 * local * neighbor / (local + neighbor) if local > 0 and neighbor > 0 else 0.0


def expected_calibration_error(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> float:
    """Mean gap between confidence and accuracy over 15 equal bins of confidence, weighted by size.

    Source: Guo et al. 2017 (arXiv:1706.04599), Eq. 3. NaN without images.
    """
    if len(labels) == 0:
        return float("nan")
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    is_right = (predicted == labels).double()
    bins = (confidence * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1
    gaps = torch.zeros(NUM_BINS, dtype=torch.float64).index_add(0, bins, is_right - confidence)
    return float(gaps.abs().sum() / len(labels))
