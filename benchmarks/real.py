"""Class statistics on real CLIP features: `python -m benchmarks real --root DIR [--out FILE.json] [--short]`.

DIR holds features of public benchmarks by OpenAI's CLIP ViT-B/32 as npz files, which are not part of this repository:
`caltech101`, `oxford_flowers`, `fgvc`, `caltech54_clip_vitb32_with_text`, `imagenet`, `imagenet310_text` and
`caltech101_vitb16_zeroshot`, with `train_union_features`, `val_features`, `test_features` [n, 512] and `..._labels`.
Everything is a simulation with seeded noise: the noise of several clients is drawn as one of the same variance.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hushprompt import files
from hushprompt.privacy.accounting import calibrate
from hushprompt.privacy.clipping import clipped_class_sums, clipped_gram
from hushprompt.privacy.noise import add_gaussian
from hushprompt.statistics.covariance import own_precision
from hushprompt.statistics.head import Head, make_head
from hushprompt.statistics.metric import Metric, Metrics, choose_rank, make_metrics
from hushprompt.statistics.posterior import SharedMean, class_posterior, shared_mean
from hushprompt.statistics.sums import MEAN_SHARE, expected, mean_rows, residual_rows, text_guess

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
    task: Task,
    texts: Tensor | None,
    clients: Sequence[Client],
    noise_multiplier: float,
    seed: int,
    place: Place,
    covariance_share: float = 0.0,
) -> Fitted:
    """Run all releases and the post-processing."""
    rng = np.random.default_rng([seed, 2])
    sizes = [len(client.images) for client in clients]
    counts, holders = expected(sizes, [client.classes for client in clients], task.num_classes)
    drawn = holders if place == "clients" else holders.clamp(max=1)
    metric = task.metrics.at(choose_rank(float(counts.mean()), noise_multiplier, float(drawn.mean())))
    of_mean, of_classes = (
        noise_multiplier / ((1 - covariance_share) * part) ** 0.5 for part in (MEAN_SHARE, 1 - MEAN_SHARE)
    )
    own = np.concatenate([client.images for client in clients])
    features, labels = task.train.features[own], task.train.labels[own]
    rows = mean_rows(features, metric)
    total = clipped_class_sums(rows, torch.zeros_like(labels), 1, metric.clip_mean).value[0]
    num_draws = len(clients) if place == "clients" else 1
    std = of_mean * metric.clip_mean * num_draws**0.5
    shared = shared_mean(add_gaussian(total, std, rng), len(own), std, metric)
    directions = None if texts is None else metric.texts(texts)
    guess = None if texts is None else text_guess(texts, metric)
    rows = residual_rows(features, labels, metric, shared.value, guess)
    sums = clipped_class_sums(rows, labels, task.num_classes, metric.clip_residual).value
    stds = of_classes * metric.clip_residual * drawn.sqrt()
    sums = sums + add_gaussian(torch.zeros_like(sums), 1.0, rng) * stds[:, None]
    posterior = class_posterior(sums, stds, counts, metric, shared, directions)
    precision = None
    if covariance_share:
        centers = posterior.estimate if guess is None else guess + posterior.estimate
        area = metric.clip_residual**2
        rows = residual_rows(features, labels, metric, shared.value, centers) / metric.clip_residual
        std = noise_multiplier * area * (num_draws / covariance_share) ** 0.5
        gram = add_gaussian(area * clipped_gram(rows, 1.0).value, std, rng)
        precision = own_precision(gram, len(own), std, float(metric.within.mean()))
    return Fitted(make_head(metric, shared, posterior, texts, LOGIT_SCALE, precision), metric, shared)


def dirichlet(task: Task, seed: int, num_clients: int = 25, alpha: float = 0.3) -> list[np.ndarray]:
    """Divide every class's images among clients by shares from a Dirichlet distribution: who has what is private."""
    rng = np.random.default_rng([seed, 3])
    parts: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
    for label in range(task.num_classes):
        images = rng.permutation((task.train.labels.numpy() == label).nonzero()[0])
        ends = (rng.dirichlet([alpha] * num_clients).cumsum() * len(images)).round().astype(int)[:-1]
        for part, own in zip(parts, np.split(images, ends), strict=True):
            part.append(own)
    return [np.concatenate(part) for part in parts]


def multiplier(epsilon: float) -> float:
    """Return the noise multiplier of one Gaussian release of every example, add/remove neighbors."""
    return calibrate(target_epsilon=epsilon, delta=DELTA, num_steps=1, sampling_prob=1.0, relation="add_remove")


def accuracy(task: Task, score: Callable[[Tensor | None, Images], Tensor]) -> float:
    """Return the percentage of test images whose highest logit is their own class's."""
    right = [(score(texts, test).argmax(dim=1) == test.labels) for texts, test in task.tests]
    return 100 * float(torch.cat(right).double().mean())


def of_head(
    task: Task, clients: Sequence[Client], epsilon: float, seed: int, place: Place = "clients", share: float = 0.0
) -> float:
    """Return the accuracy of the head, the same for all clients; `share` of the release goes to the covariance."""
    z = multiplier(epsilon)

    def score(texts: Tensor | None, test: Images) -> Tensor:
        return release(task, texts, clients, z, seed, place, share).head.logits(test.features)

    return accuracy(task, score)


def with_prior(task: Task, epsilon: float, seed: int) -> tuple[float, float]:
    """Return local and neighbor accuracy where every client adds its class prior."""
    clients, z, local, neighbor = disjoint(task, seed), multiplier(epsilon), [], []
    for texts, test in task.tests:
        head = release(task, texts, clients, z, seed, "clients").head
        for client in clients:
            logits = head.logits(test.features)
            logits[:, list(client.classes)] += math.log(ODDS)
            right = (logits.argmax(dim=1) == test.labels).double()
            is_own = torch.isin(test.labels, torch.tensor(client.classes))
            local.append(100 * float(right[is_own].mean()))
            neighbor.append(100 * float(right[~is_own].mean()))
    return float(np.mean(local)), float(np.mean(neighbor))


def unit_norm(task: Task, epsilon: float, seed: int) -> float:
    """Return the accuracy of unit-norm embeddings alone."""
    clients, z = disjoint(task, seed), multiplier(epsilon)

    def score(texts: Tensor | None, test: Images) -> Tensor:
        fitted = release(task, texts, clients, z, seed, "clients")
        return fitted.head.unit_norm(fitted.metric, fitted.shared).logits(test.features)

    return accuracy(task, score)


def spread_over_clients(task: Task, epsilon: float, seed: int) -> dict[str, float]:
    """Score a Dirichlet division: all rows noised, as the rule is, and rows of the classes that a client has."""
    parts = dirichlet(task, seed)
    everything = [Client(part, range(task.num_classes)) for part in parts]
    read = [Client(part, np.unique(task.train.labels.numpy()[part]).tolist()) for part in parts]
    return {
        "all rows, noise at clients": of_head(task, everything, epsilon, seed),
        "all rows, noise on the sum": of_head(task, everything, epsilon, seed, "sum"),
        "rows read from data (not private), noise at clients": of_head(task, read, epsilon, seed),
        "rows read from data (not private), noise on the sum": of_head(task, read, epsilon, seed, "sum"),
    }


def class_means(task: Task, z: float, seed: int) -> Tensor:
    """Private class means (DPPL-Mean): weights [c, d]; noise once on the sum."""
    sums = clipped_class_sums(task.train.features, task.train.labels, task.num_classes, 1.0).value
    return torch.nn.functional.normalize(add_gaussian(sums, z, np.random.default_rng([seed, 4])), dim=1)


def gradient_descent(x: Tensor, y: Tensor, start: Tensor, z: float, seed: int, steps: int, rate: float) -> Tensor:
    """Linear probe by full-batch gradient descent with noise: weights [c, r] for rows within the unit ball."""
    rng, weights, one_hot = np.random.default_rng([seed, 5]), start, torch.eye(len(start)).double()[y]
    lengths = x.norm(dim=1)
    for _ in range(steps):
        errors = (x @ weights.T).softmax(dim=1) - one_hot
        errors = errors * (1 / (errors.norm(dim=1) * lengths).clamp(min=1e-12)).clamp(max=1.0)[:, None]
        weights = weights - rate / len(x) * add_gaussian(errors.T @ x, z * steps**0.5, rng)
    return weights


def least_squares(x: Tensor, y: Tensor, num_classes: int, z: float, seed: int, share: float, ridge: float) -> Tensor:
    """Private least squares (DP-FC): weights [c, r] for rows within the unit ball; `share` goes to the covariance."""
    rng, r = np.random.default_rng([seed, 6]), x.shape[1]
    sums = add_gaussian(clipped_class_sums(x, y, num_classes, 1.0).value, z / (1 - share) ** 0.5, rng)
    noise = add_gaussian(torch.zeros(r, r, dtype=torch.float64), z / share**0.5, rng)
    values, vectors = torch.linalg.eigh(x.T @ x + noise.triu() + noise.triu(1).T)
    return (sums @ vectors / (values.clamp(min=0) + ridge)) @ vectors.T


def rivals(task: Task, epsilon: float) -> dict[str, list[float]]:
    """Score the rivals with noise once on the sum; settings are the best of a grid on the test images themselves."""
    z, metric, c = multiplier(epsilon), task.metrics.at(256), task.num_classes
    clip = lambda x: x / x.norm(dim=1, keepdim=True).clamp(min=metric.clip_mean)  # noqa: E731
    raw, y = task.train.features, task.train.labels
    mapped = clip(mean_rows(raw, metric))
    view = lambda test: clip(mean_rows(test.features, metric))  # noqa: E731

    def best(
        fit: Callable[..., Tensor], grid: Sequence[tuple[float, ...]], see: Callable[[Images], Tensor]
    ) -> list[float]:
        score = lambda seed, given: accuracy(task, lambda _, test: see(test) @ fit(seed, *given).T)  # noqa: E731
        chosen = max(grid, key=lambda given: score(11, given))
        return [score(seed, chosen) for seed in SEEDS]

    steps = ((3, 30), (3, 100), (3, 300), (10, 30), (10, 100), (30, 30), (30, 100))
    ridges = tuple((share, ridge) for share in (0.1, 0.3) for ridge in (1.0, 10.0, 100.0, 1000.0))
    zeros = lambda x: torch.zeros(c, x.shape[1], dtype=torch.float64)  # noqa: E731
    rows = {
        "class means": best(lambda seed: class_means(task, z, seed), ((),), lambda test: test.features),
        "gradient descent, raw features": best(
            lambda seed, n, rate: gradient_descent(raw, y, zeros(raw), z, seed, n, rate), steps, lambda t: t.features
        ),
        "gradient descent, in the metric": best(
            lambda seed, n, rate: gradient_descent(mapped, y, zeros(mapped), z, seed, n, rate), steps, view
        ),
        "least squares, in the metric": best(
            lambda seed, share, ridge: least_squares(mapped, y, c, z, seed, share, ridge), ridges, view
        ),
    }
    texts = task.tests[0][0]
    if texts is not None and len(task.tests) == 1:
        rows["gradient descent from zero-shot"] = best(
            lambda seed, n, rate: gradient_descent(raw, y, LOGIT_SCALE * texts, z, seed, n, rate),
            steps, lambda test: test.features,
        )  # fmt: skip
    return rows


def measure(task: Task, is_short: bool) -> dict[str, Any]:
    """Measure everything about one task."""
    seeds = SEEDS[:1] if is_short else SEEDS
    head = {f"{e:g}": [of_head(task, disjoint(task, s), e, s) for s in seeds] for e in EPSILONS}
    found: dict[str, Any] = {"head, 10 disjoint clients": head}
    if task.tests[0][0] is not None:
        found["zero-shot"] = accuracy(task, lambda texts, test: test.features @ texts.T)  # type: ignore[union-attr]
        draws = range(1, 2 if is_short else 16)
        found["never below"] = {f"{e:g}": [of_head(task, disjoint(task, s), e, s) for s in draws] for e in TINY}
    found["unit norm"] = {f"{e:g}": [unit_norm(task, e, s) for s in seeds] for e in (2.0, 8.0)}
    found["class prior, local and neighbor"] = {"2": [with_prior(task, 2.0, s) for s in seeds]}
    found["Dirichlet 0.3, 25 clients"] = {"2": [spread_over_clients(task, 2.0, s) for s in seeds]}
    for share in (0.0, 0.1):
        found[f"share of the covariance {share:g}, noise on the sum"] = {
            f"{e:g}": [of_head(task, disjoint(task, s), e, s, "sum", share) for s in seeds] for e in (2.0, 4.0, 8.0)
        }
    if not is_short:
        found["rivals"] = {f"{e:g}": rivals(task, e) for e in (0.4, 2.0, 8.0)}
    return found


def main(arguments: Sequence[str]) -> None:
    """Measure all tasks, one after the other, on one thread."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks real", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder with the npz files")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--short", action="store_true", help="one seed, no rivals")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = {}
    for task in tasks(options.root):
        start = time.perf_counter()
        results[task.name] = measure(task, options.short)
        print(f"{task.name}, {time.perf_counter() - start:.0f} s", *lines(results[task.name]), sep="\n  ", flush=True)  # noqa: T201
        if options.out:
            files.write_text(options.out, json.dumps(results, indent=1) + "\n")


def lines(found: dict[str, Any]) -> Iterator[str]:
    """Say what was found, means over seeds."""
    for name, value in found.items():
        of_epsilon = value if isinstance(value, dict) else {"": value}
        for epsilon, scores in of_epsilon.items():
            yield f"{name} {epsilon}: {mean(scores)}"


def mean(scores: Any) -> Any:
    """Average over seeds, whatever each one gave."""
    if isinstance(scores, dict):
        return {name: mean(value) for name, value in scores.items()}
    if isinstance(scores, list) and isinstance(scores[0], dict):
        return {name: mean([score[name] for score in scores]) for name in scores[0]}
    return np.round(np.mean(np.atleast_1d(scores), axis=0), 2).tolist()
