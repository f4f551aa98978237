"""Scores of all clients' prompts on one evaluation split."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt.evaluation.metrics import (
    accuracy,
    confusion,
    expected_calibration_error,
    harmonic_mean,
    per_class_accuracy,
)
from hushprompt.evaluation.splits import ClientSplit


@dataclass(frozen=True)
class ClientScores:
    """One client's accuracies, as fractions; NaN where there is no image."""

    client_id: int
    local: float
    neighbor: float
    calibration_error: float
    """On the client's own images."""


@dataclass(frozen=True)
class Scores:
    """All clients', and what is reported of them."""

    clients: tuple[ClientScores, ...]
    local: float
    """Mean over clients, each client once, of the accuracy on its own images."""
    neighbor: float
    """Mean over clients of the accuracy on the other clients' images."""
    harmonic_mean: float
    """Of the two means."""
    worst_client: float
    """Smallest local accuracy."""
    calibration_error: float
    """Mean over clients."""
    per_class: tuple[float | None, ...]
    """Accuracy of each class over the clients' own images; None where a class has none."""
    confusion_local: Int[Tensor, "c c"]
    """Predictions on the clients' own images, true class by predicted class."""
    confusion_neighbor: Int[Tensor, "c c"]
    """The same on the other clients' images, added up over clients: an image counts once for each other client."""


def evaluate(
    logits_fn: Callable[[int], Float[Tensor, "n c"]], labels: Int[Tensor, " n"], splits: tuple[ClientSplit, ...]
) -> Scores:
    """Score every client on its own and on the other clients' images.

    Args:
        logits_fn: gives a client's logits [n, c] on all images of the evaluation split; called once a client.
        labels: [n] of the evaluation split.
        splits: each client's local and neighbor images.
    """
    clients, own_logits, own_labels = [], [], []
    on_own = on_others = torch.zeros((), dtype=torch.int64)
    for split in splits:
        logits = logits_fn(split.client_id)
        mine, others = torch.from_numpy(split.local), torch.from_numpy(split.neighbor)
        own_logits.append(logits[mine])
        own_labels.append(labels[mine])
        on_own = on_own + confusion(logits[mine], labels[mine])
        on_others = on_others + confusion(logits[others], labels[others])
        clients.append(
            ClientScores(
                client_id=split.client_id,
                local=accuracy(logits[mine], labels[mine]),
                neighbor=accuracy(logits[others], labels[others]),
                calibration_error=expected_calibration_error(logits[mine], labels[mine]),
            )
        )
    local, neighbor = _mean(c.local for c in clients), _mean(c.neighbor for c in clients)
    return Scores(
        clients=tuple(clients),
        local=local,
        neighbor=neighbor,
        harmonic_mean=harmonic_mean(local, neighbor),
        worst_client=min((c.local for c in clients if not math.isnan(c.local)), default=math.nan),
        calibration_error=_mean(c.calibration_error for c in clients),
        per_class=tuple(per_class_accuracy(torch.cat(own_logits), torch.cat(own_labels))),
        confusion_local=on_own,
        confusion_neighbor=on_others,
    )


def _mean(values: object) -> float:
    """Mean of the values that are numbers; NaN if none is."""
    array = np.array(list(values))  # type: ignore[call-overload]
    return float(np.nanmean(array)) if np.isfinite(array).any() else math.nan
