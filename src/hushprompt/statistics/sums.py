"""What of an image is clipped and summed, and which part of a client's budget each of the two sums takes.

These rows are private: they go through `privacy.clipping` and a mechanism's noise, and nowhere else. A row depends on
its own image and label and on what is public or released before, never on another image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from hushprompt.statistics.metric import Metric

MEAN_SHARE = 0.05
"""beta: share of the budget, as 1 / noise multiplier^2, that the sum for the shared mean takes."""


def mean_rows(features: Float[Tensor, "n d"], metric: Metric) -> Float64[Tensor, "n r"]:
    """Return A^T (x - m0), to be clipped to `metric.clip_mean` and summed over all images."""
    return (features.double() - metric.mean) @ metric.directions


def residual_rows(
    features: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    metric: Metric,
    shared: Float64[Tensor, " r"],
    guess: Float64[Tensor, "c r"] | None,
) -> Float64[Tensor, "n r"]:
    """Return A^T (x - m0) - g - t_y, to be clipped to `metric.clip_residual` and summed class by class.

    Args:
        features: [n, d] unit-norm image features.
        labels: [n] their classes.
        metric: public.
        shared: g, the released mean of the task.
        guess: t_c = `text_guess`, public; None where classes have no text.
    """
    rows = mean_rows(features, metric) - shared
    return rows if guess is None else rows - guess[labels]


def text_guess(text_features: Float[Tensor, "c d"], metric: Metric) -> Float64[Tensor, "c r"]:
    """Return t_c = kappa A'^T (e_c - mean e): where text alone expects the mean of a class."""
    assert metric.kappa is not None, "tasks with text are refused for a metric without kappa"
    return metric.kappa * metric.texts(text_features)


class Expected(NamedTuple):
    """What is publicly expected of each class, in float64."""

    counts: Float64[Tensor, " c"]
    """n_c: images, the sum over clients of n_i / |C_i|; 0 where no client has the class."""
    holders: Float64[Tensor, " c"]
    """k_c: clients that release a row for the class."""


def expected(num_images: Sequence[int], class_sets: Sequence[Sequence[int]], num_classes: int) -> Expected:
    """Return the expected number of images and the number of holders of every class, from public numbers alone.

    Args:
        num_images: n_i of each client.
        class_sets: C_i of each client: its public class set, or all classes where that is not public.
        num_classes: c.
    """
    counts, holders = torch.zeros(2, num_classes, dtype=torch.float64)
    for images, classes in zip(num_images, class_sets, strict=True):
        own = torch.as_tensor(list(classes), dtype=torch.int64)
        counts[own] += images / max(len(own), 1)
        holders[own] += 1
    return Expected(counts, holders)
