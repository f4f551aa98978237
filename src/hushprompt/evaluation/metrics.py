"""Metrics of predictions: pure functions of logits and labels."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

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


def per_class_accuracy(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> list[float | None]:
    """Accuracy on each class's images, in label order; None where a class has no image."""
    is_right = (logits.argmax(dim=1) == labels).double()
    rows = [is_right[labels == label] for label in range(logits.shape[1])]
    return [float(row.mean()) if len(row) else None for row in rows]


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
