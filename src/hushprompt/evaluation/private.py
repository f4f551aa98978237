"""Scores that may leave: counts of right answers, which get noise, and the accuracies that follow from noisy counts.

Accuracy by class, confusion and calibration error would be further releases of the same images, so they are not made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt.evaluation.evaluate import ClientScores, Scores
from hushprompt.evaluation.metrics import harmonic_mean, predicted_classes
from hushprompt.evaluation.splits import ClientSplit
from hushprompt.privacy.metrics import RightAnswers

BATCH_SIZE = 256
"""Images that are scored at a time where their right answers are counted."""


def count_right(
    logits_fn: Callable[[int], Float[Tensor, "n c"]],
    labels: Int[Tensor, " n"],
    splits: tuple[ClientSplit, ...],
    *,
    map_fn: Callable[..., Iterable[tuple[float, float]]] = map,
) -> RightAnswers:
    """Count the right answers of every client's prompt. Not private: for `MetricsPlan.release` alone.

    Where groups are the privacy unit, their shares of right answers are added up.

    Args:
        logits_fn: gives a client's logits [n, c] on all images of the evaluation split; called once a client.
        labels: [n] of the evaluation split.
        splits: each client's local and neighbor images.
        map_fn: goes through the clients as `map` does.
    """

    def count(split: ClientSplit) -> tuple[float, float]:
        own, everyone = split.count(predicted_classes(logits_fn(split.client_id)) == labels.numpy())
        return own, everyone - own

    kind = np.float64 if any(split.groups for split in splits) else np.int64
    counts = np.array(list(map_fn(count, splits)), dtype=kind).reshape(len(splits), 2)
    return RightAnswers(local=counts[:, 0], neighbor=counts[:, 1])


def in_equal_batches(
    score: Callable[[Float[Tensor, "b *m d"]], Float[Tensor, "b c"]], images: Float[Tensor, "n *m d"]
) -> Float[Tensor, "n c"]:
    """Score images always as many at a time, the last batch filled up with zeros.

    A count of right answers jumps where two scores change order, and matrix kernels choose their order of summation by
    the size of a batch. With one size, an image's scores do not depend on how many others there are, so one image more
    or less changes one answer.
    """
    num_missing = -len(images) % BATCH_SIZE
    filled = torch.cat([images, images.new_zeros(num_missing, *images.shape[1:])])
    return torch.cat([score(part) for part in filled.split(BATCH_SIZE)])[: len(images)]


def scores_of(released: RightAnswers, splits: tuple[ClientSplit, ...]) -> Scores:
    """Turn released counts into accuracies: post-processing, with public sizes as divisors.

    Every figure is held in [0, 1]. The means over clients are of the unclipped accuracies, so that clipping, which
    moves noisy values near 0 and 1 inward, does not bias them; the worst client is the smallest of noisy values, and so
    more likely too low than too high.
    """
    num_local = np.array([split.num_local for split in splits])
    num_neighbor = np.array([split.num_everyone for split in splits]) - num_local
    local, neighbor = _shares(released.local, num_local), _shares(released.neighbor, num_neighbor)
    clients = tuple(
        ClientScores(client_id=split.client_id, local=_held(own), neighbor=_held(others), calibration_error=math.nan)
        for split, own, others in zip(splits, local.tolist(), neighbor.tolist(), strict=True)
    )
    mean_local, mean_neighbor = _mean(local), _mean(neighbor)
    return Scores(
        clients=clients,
        local=mean_local,
        neighbor=mean_neighbor,
        harmonic_mean=harmonic_mean(mean_local, mean_neighbor),
        worst_client=min((c.local for c in clients if not math.isnan(c.local)), default=math.nan),
        calibration_error=math.nan,
        per_class=(),
    )


def _shares(counts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Divide by public sizes; NaN where there is no image."""
    return np.where(sizes > 0, counts / np.maximum(sizes, 1), math.nan)


def _mean(values: np.ndarray) -> float:
    """Return the mean of the values that are numbers, held in [0, 1]; NaN if none is."""
    numbers = values[~np.isnan(values)]
    return _held(float(numbers.mean())) if len(numbers) else math.nan


def _held(value: float) -> float:
    """Clip an accuracy to [0, 1]; NaN stays."""
    return value if math.isnan(value) else min(max(value, 0.0), 1.0)
