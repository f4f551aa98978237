"""Scores of all clients' prompts on one evaluation split.

A client's logits are reduced to a few counts before the next client's are computed, so memory does not grow with the
number of clients.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt.evaluation.answers import ANSWER_SCORES, AnswerScores
from hushprompt.evaluation.metrics import accuracy, expected_calibration_error, harmonic_mean, predicted_classes
from hushprompt.evaluation.splits import ClientSplit


@dataclass(frozen=True)
class ClientScores(AnswerScores):
    """One client's accuracies, as fractions; NaN where there is no image."""

    client_id: int
    local: float
    neighbor: float
    calibration_error: float
    """On the client's own images."""
    base: float | None = None
    """On all images of base classes, among base classes; None where all classes are trained on."""
    new: float | None = None
    """On all images of new classes, among new classes; None where all classes are trained on."""


@dataclass(frozen=True)
class Scores(AnswerScores):
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
    base: float | None = None
    """Mean over clients of the accuracy on base classes; None where all classes are trained on."""
    new: float | None = None
    """Mean over clients of the accuracy on new classes; None where all classes are trained on."""
    base_new_harmonic_mean: float | None = None
    """Of the two means."""


@dataclass(frozen=True)
class NewClasses:
    """Everything needed to score the classes that nobody trains on."""

    logits_fn: Callable[[int], Float[Tensor, "m c"]]
    """Gives a client's logits [m, c] of all images of new classes, among the new classes."""
    labels: Int[Tensor, " m"]
    """[m] counted from the first new class."""


@dataclass(frozen=True)
class Tally:
    """Summary of one client's logits."""

    scores: ClientScores
    predicted: Int[np.ndarray, " n"]
    """Predicted class of each image, by the client's prompt."""
    num_right: Int[np.ndarray, " c"]
    """Own images of each class that are classified rightly."""
    num_images: Int[np.ndarray, " c"]
    """Own images of each class."""


def evaluate(
    logits_fn: Callable[[int], Float[Tensor, "n c"]],
    labels: Int[Tensor, " n"],
    splits: tuple[ClientSplit, ...],
    *,
    new_classes: NewClasses | None = None,
    predicted: dict[int, Int[np.ndarray, " n"]] | None = None,
    map_fn: Callable[..., Iterable[Tally]] = map,
) -> Scores:
    """Score every client on its own and on the other clients' images.

    Args:
        logits_fn: gives a client's logits [n, c] on all images of the evaluation split; called once a client.
        labels: [n] of the evaluation split; one that is no column of the logits belongs to nobody's image.
        splits: each client's local and neighbor images.
        new_classes: how to score classes that nobody trains on; None: there are none.
        predicted: filled with what each client's prompt takes all images for.
        map_fn: goes through the clients as `map` does; a pool's holds as many logits at once as it has workers.
    """

    def tally(split: ClientSplit) -> Tally:
        counted = _tally(logits_fn(split.client_id), labels, split)
        if new_classes is None:
            return counted
        new = accuracy(new_classes.logits_fn(split.client_id), new_classes.labels)
        return dataclasses.replace(counted, scores=dataclasses.replace(counted.scores, new=new))

    tallies = list(map_fn(tally, splits))
    if predicted is not None:
        predicted.update({each.scores.client_id: each.predicted for each in tallies})
    clients = tuple(each.scores for each in tallies)
    if new_classes is None:
        clients = tuple(dataclasses.replace(client, base=None) for client in clients)
    local, neighbor = _mean(c.local for c in clients), _mean(c.neighbor for c in clients)
    base, new = (None, None) if new_classes is None else (_mean(c.base for c in clients), _mean(c.new for c in clients))
    num_right, num_images = (sum(getattr(each, name) for each in tallies) for name in ("num_right", "num_images"))
    return Scores(
        clients=clients,
        local=local,
        neighbor=neighbor,
        harmonic_mean=harmonic_mean(local, neighbor),
        worst_client=min((c.local for c in clients if not math.isnan(c.local)), default=math.nan),
        calibration_error=_mean(c.calibration_error for c in clients),
        per_class=tuple(
            right / count if count else None
            for right, count in zip(num_right.tolist(), num_images.tolist(), strict=True)
        ),
        base=base,
        new=new,
        base_new_harmonic_mean=None if base is None or new is None else harmonic_mean(base, new),
    )


def evaluate_answers(
    measures_fn: Callable[[int], Float[Tensor, "n 4"]],
    splits: tuple[ClientSplit, ...],
    *,
    map_fn: Callable[..., Iterable[Any]] = map,
) -> Scores:
    """Score every client's answers to its own and to the other clients' questions.

    Args:
        measures_fn: gives exact match, loss per token, ANLS and VQA accuracy of a client's answers to all questions.
        splits: each client's local and neighbor questions.
        map_fn: goes through the clients as `map` does.

    Returns:
        Accuracies are shares of exact matches; what is about classes is left out.
    """
    measures = list(map_fn(measures_fn, [split.client_id for split in splits]))
    known = {split.client_id: each for split, each in zip(splits, measures, strict=True)}
    right = torch.ones(len(measures[0]), dtype=torch.int64)
    scores = evaluate(lambda client_id: right_or_not(known[client_id]), right, splits)
    clients = tuple(
        dataclasses.replace(client, calibration_error=math.nan, **_answer_means(known[client.client_id], split))
        for client, split in zip(scores.clients, splits, strict=True)
    )
    means: dict[str, Any] = {
        name: _mean_or_none([getattr(client, name) for client in clients]) for name in ANSWER_SCORES
    }
    return dataclasses.replace(scores, clients=clients, calibration_error=math.nan, per_class=(), **means)


def right_or_not(measures: Float[Tensor, "n m"]) -> Float[Tensor, "n 2"]:
    """Return what stands for logits where an answer is right (class 1) or not, from exact matches in the first column.

    >>> right_or_not(torch.tensor([[1.0, 7.0]])).tolist()
    [[0.0, 1.0]]
    """
    return torch.stack([1 - measures[:, 0], measures[:, 0]], dim=1)


def _answer_means(measures: Float[Tensor, "n 4"], split: ClientSplit) -> dict[str, Any]:
    """Return the means of loss, ANLS and VQA accuracy over the own questions and the others'."""
    values, means = measures.numpy()[:, 1:], []
    for column in values.T:
        means += [_mean(column[split.local].tolist()), _mean(column[split.neighbor].tolist())]
    named = zip(ANSWER_SCORES, means, strict=True)
    return {name: None if math.isnan(value) else value for name, value in named}


def mean_scores(rounds: Sequence[Scores]) -> Scores:
    """Return the mean of every figure over several rounds; of one round, its scores themselves."""
    if len(rounds) == 1:
        return rounds[0]
    clients = [_mean_fields(each) for each in zip(*(scores.clients for scores in rounds), strict=True)]
    per_class = tuple(_mean_or_none(values) for values in zip(*(scores.per_class for scores in rounds), strict=True))
    return dataclasses.replace(_mean_fields(rounds), clients=tuple(clients), per_class=per_class)


def _tally(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"], split: ClientSplit) -> Tally:
    """Reduce a client's logits to counts. `base` is the accuracy on all clients' images, also where nothing is new."""
    predicted, true = predicted_classes(logits), labels.numpy()
    is_right = predicted == true
    right_own, right_all = int(is_right[split.local].sum()), int(is_right[split.everyone].sum())
    num_own, num_all = len(split.local), len(split.everyone)
    own = torch.from_numpy(split.local)
    scores = ClientScores(
        client_id=split.client_id,
        local=_share(right_own, num_own),
        neighbor=_share(right_all - right_own, num_all - num_own),
        calibration_error=expected_calibration_error(logits[own], labels[own]),
        base=_share(right_all, num_all),
    )
    num_classes, own_labels = logits.shape[1], true[split.local]
    return Tally(
        scores,
        predicted,
        num_right=np.bincount(own_labels[is_right[split.local]], minlength=num_classes),
        num_images=np.bincount(own_labels, minlength=num_classes),
    )


def _share(count: int, total: int) -> float:
    """Return a fraction; NaN of nothing."""
    return count / total if total else math.nan


def _mean(values: Iterable[float | None]) -> float:
    """Mean of the values that are numbers; NaN if none is."""
    array = np.array([math.nan if value is None else value for value in values])
    return float(np.nanmean(array)) if np.isfinite(array).any() else math.nan


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    """Mean of figures of several rounds; None where they are None."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _mean_fields(each: Sequence[Any]) -> Any:
    """Average the figures of equal dataclasses field by field; whole numbers and tuples stay those of the last one."""
    means = {
        field.name: _mean_or_none([getattr(one, field.name) for one in each])
        for field in dataclasses.fields(each[-1])
        if isinstance(getattr(each[-1], field.name), float)
    }
    return dataclasses.replace(each[-1], **means)
