"""Class statistics on real CLIP features: `python -m benchmarks real --root DIR [--out FILE.json] [--short]`.

DIR holds features of public benchmarks by OpenAI's CLIP ViT-B/32 as npz files, which are not part of this repository:
`caltech101`, `oxford_flowers`, `fgvc`, `caltech54_clip_vitb32_with_text`, `imagenet`, `imagenet310_text` and
`caltech101_vitb16_zeroshot`, with `train_union_features`, `val_features`, `test_features` [n, 512] and `..._labels`.
Everything is a simulation with seeded noise: the noise of several clients is drawn as one of the same variance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hushprompt.privacy.clipping import clipped_class_sums
from hushprompt.privacy.noise import add_gaussian
from hushprompt.statistics.head import Head, make_head
from hushprompt.statistics.metric import Metric, Metrics, choose_rank, make_metrics
from hushprompt.statistics.posterior import SharedMean, class_posterior, shared_mean
from hushprompt.statistics.sums import expected, mean_rows, residual_rows, split_noise, text_guess

EPSILONS = (0.1, 0.4, 1.0, 2.0, 4.0, 8.0, math.inf)
TINY = (0.01, 0.03, 0.1, 0.2, 0.4, 1.0)
"""Budgets at which the head must not lie below zero-shot."""
DELTA, ODDS, LOGIT_SCALE = 1e-5, 4.0, 100.0
SEEDS = (1, 2, 3, 4, 5)
PROXY_RIDGE = 0.5
Place = Literal["clients", "sum"]
"""Where noise is added: at every client, or once on their sum."""


@dataclass(frozen=True)
class Images:
    """Unit-norm features [n, d] in float64 and labels [n]."""

    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Task:
    """One private task, and what is public about it."""

    name: str
    train: Images
    tests: tuple[tuple[Tensor | None, Images], ...]
    """Text features, or None, and the images that are scored with them: pairs, since proxy texts are cross-fitted."""
    metrics: Metrics

    @property
    def num_classes(self) -> int:
        """Number of classes c."""
        return int(self.train.labels.max()) + 1


@dataclass(frozen=True)
class Client:
    """Whose images, and of which classes it may release rows."""

    images: np.ndarray
    classes: Sequence[int]


def tasks(root: Path) -> Iterator[Task]:
    """Read the five tasks of the published table, and the one that nothing was chosen on."""
    public = _images(root / "imagenet.npz", "train_union")
    with np.load(root / "imagenet310_text.npz", allow_pickle=False) as file:
        with_text, texts = file["imagenet_class"].astype(int), torch.from_numpy(file["text_features"]).double()
    pairs = dict(zip(with_text.tolist(), texts, strict=True))
    origin = "ImageNet training images"
    of_all = make_metrics(public.features, public.labels, origin, "clip", pairs)
    is_named = torch.from_numpy(np.isin(public.labels.numpy(), with_text))
    of_690 = make_metrics(public.features[~is_named], public.labels[~is_named], f"{origin}, 690 classes", "clip")
    of_310 = make_metrics(public.features[is_named], public.labels[is_named], f"{origin}, 310 classes", "clip")
    # No other public texts: kappa alone is fitted on the classes of this task.
    with_kappa = {rank: replace(one, kappa=of_all.at(rank).kappa) for rank, one in of_690.of_rank.items()}
    with np.load(root / "caltech54_clip_vitb32_with_text.npz", allow_pickle=False) as file:
        text_54 = torch.from_numpy(file["text_features"]).double()
    path = root / "caltech54_clip_vitb32_with_text.npz"
    yield Task("caltech54", _private(path, "train"), ((text_54, _images(path, "test")),), of_all)
    train, test = _first_two_are_test(public, is_named)
    yield Task("imagenet310", train, ((texts, test),), replace(of_690, of_rank=with_kappa))
    path = root / "caltech101.npz"
    yield Task("caltech101", _private(path), _proxy_texts(root, _images(path, "test")), of_all)
    for name in ("oxford_flowers", "fgvc"):
        path = root / f"{name}.npz"
        yield Task(name, _private(path), ((None, _images(path, "test")),), of_all)
    train, test = _first_two_are_test(public, ~is_named)
    yield Task("imagenet690", train, ((None, test),), of_310)


def _images(path: Path, split: str) -> Images:
    """Read one split; the stored float16 features are scaled back to unit norm."""
    with np.load(path, allow_pickle=False) as file:
        features = torch.from_numpy(file[f"{split}_features"]).double()
        return Images(torch.nn.functional.normalize(features, dim=1), torch.from_numpy(file[f"{split}_labels"]).long())


def _private(path: Path, train: str = "train_union") -> Images:
    """Read what clients hold: training and validation images."""
    parts = _images(path, train), _images(path, "val")
    return Images(torch.cat([part.features for part in parts]), torch.cat([part.labels for part in parts]))


def _first_two_are_test(images: Images, chosen: Tensor) -> tuple[Images, Images]:
    """Divide the chosen classes' images: the first two of each class in a fixed random order are test images."""
    features, labels = images.features[chosen], images.labels[chosen].unique(return_inverse=True)[1]
    order = np.random.default_rng(0).permutation(len(labels))
    seen = np.zeros(int(labels.max()) + 1, dtype=int)
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for place in order:
        is_test[place] = bool(seen[labels[place]] < 2)
        seen[labels[place]] += 1
    return Images(features[~is_test], labels[~is_test]), Images(features[is_test], labels[is_test])


def _proxy_texts(root: Path, test: Images) -> tuple[tuple[Tensor, Images], ...]:
    """Fit text features to another model's cosines on one half of the test images, without labels, for the other."""
    with np.load(root / "caltech101_vitb16_zeroshot.npz", allow_pickle=False) as file:
        cosines = torch.from_numpy(file["cosines"]).double()
    halves = np.array_split(np.random.default_rng(0).permutation(len(cosines)), 2)
    pairs = []
    for fitted, scored in (halves, halves[::-1]):
        x = test.features[fitted]
        gram = x.T @ x + PROXY_RIDGE * torch.eye(x.shape[1], dtype=torch.float64)
        texts = torch.linalg.solve(gram, x.T @ cosines[fitted]).T
        pairs.append((texts, Images(test.features[scored], test.labels[scored])))
    return tuple(pairs)


def disjoint(task: Task, seed: int, num_clients: int = 10) -> list[Client]:
    """Divide the classes among clients: a public class set each."""
    classes = np.array_split(np.random.default_rng([seed, 1]).permutation(task.num_classes), num_clients)
    return [Client(np.isin(task.train.labels.numpy(), own).nonzero()[0], own.tolist()) for own in classes]


@dataclass(frozen=True)
class Fitted:
    """What one simulated release gave."""

    head: Head
    metric: Metric
    shared: SharedMean


def release(
    task: Task, texts: Tensor | None, clients: Sequence[Client], noise_multiplier: float, seed: int, place: Place
) -> Fitted:
    """Run both releases and the post-processing."""
    rng = np.random.default_rng([seed, 2])
    sizes = [len(client.images) for client in clients]
    counts, holders = expected(sizes, [client.classes for client in clients], task.num_classes)
    drawn = holders if place == "clients" else holders.clamp(max=1)
    metric = task.metrics.at(choose_rank(float(counts.mean()), noise_multiplier, float(drawn.mean())))
    of_mean, of_classes = split_noise(noise_multiplier)
    own = np.concatenate([client.images for client in clients])
    features, labels = task.train.features[own], task.train.labels[own]
    rows = mean_rows(features, metric)
    total = clipped_class_sums(rows, torch.zeros_like(labels), 1, metric.clip_mean).value[0]
    std = of_mean * metric.clip_mean * (len(clients) if place == "clients" else 1) ** 0.5
    shared = shared_mean(add_gaussian(total, std, rng), len(own), std, metric)
    directions = None if texts is None else metric.texts(texts)
    guess = None if texts is None else text_guess(texts, metric)
    rows = residual_rows(features, labels, metric, shared.value, guess)
    sums = clipped_class_sums(rows, labels, task.num_classes, metric.clip_residual).value
    stds = of_classes * metric.clip_residual * drawn.sqrt()
    sums = sums + add_gaussian(torch.zeros_like(sums), 1.0, rng) * stds[:, None]
    posterior = class_posterior(sums, stds, counts, metric, shared, directions)
    return Fitted(make_head(metric, shared, posterior, texts, LOGIT_SCALE), metric, shared)
