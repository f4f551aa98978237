"""A backbone's public metric: in which directions its image features differ between classes, and how far.

Made once from labeled public images, of any classes; a metric holds nothing private. Source: whitened linear
discriminant analysis (Fisher 1936), with the within-class covariance shrunk to the identity.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import torch
from jaxtyping import Float, Float64, Int64
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hushprompt import files
from hushprompt.errors import DataError, UnfitError
from hushprompt.models.base import Model

FORMAT = "hushprompt metric 1"
RANKS = (128, 256)
"""Ranks that a file holds; none is more than half of the features' width."""
IMAGES_A_DIRECTION = 12.0
"""Public images, less classes, over the features' width from which the within-class covariance is shrunk less."""
LEAST_CLASSES = 100
"""Classes with two or more images each below which no metric is made."""
IMAGES_FOR_HIGH_RANK = 30.0
"""Images a class, over the noise multiplier of their sum, from which the higher rank pays."""
LEAST_BETWEEN = 1e-3
"""Least between-class variance of a direction, as a share of the largest: estimates of it can be negative."""


@dataclass(frozen=True)
class Metric:
    """The r directions that tell classes apart best, in units of the spread within a class."""

    directions: Float64[Tensor, "d r"]
    """A: image features are looked at as A^T (x - mean)."""
    inverse: Float64[Tensor, "d r"]
    """A': A^T A' is the identity; text features are looked at as kappa A'^T e."""
    mean: Float64[Tensor, " d"]
    """m0: mean of the class means of public images."""
    constant: Float64[Tensor, " d"]
    """A direction in which every public image is about 1, by least squares: it can carry a bias."""
    unused: Float64[Tensor, " d"]
    """The unit direction that public images use least: what a weight lacks in length can be put there."""
    within: Float64[Tensor, " r"]
    """w: variance of an image around its class mean."""
    between: float
    """tau: mean variance of class means, a direction."""
    clip_mean: float
    """C1: median of |A^T (x - mean)|."""
    clip_residual: float
    """C2: median distance of an image from its class mean."""
    kappa: float | None
    """Slope of class means on text features; None where no public class has a text."""

    @property
    def rank(self) -> int:
        """Number r of directions."""
        return self.directions.shape[1]

    def lift(self, coordinates: Float64[Tensor, "*k r"]) -> Float64[Tensor, "*k d"]:
        """Return the shortest features with these coordinates: the pseudo-inverse of A^T."""
        lifted: Tensor = coordinates @ torch.linalg.pinv(self.directions)
        return lifted

    def texts(self, text_features: Float[Tensor, "c d"]) -> Float64[Tensor, "c r"]:
        """Return F = A'^T (e_c - mean e): text features in this metric; kappa F is their guess of class means."""
        return _centered(text_features.double()) @ self.inverse


@dataclass(frozen=True, kw_only=True)
class MetricOrigin:
    """What a metric file says of itself."""

    fingerprint: str
    """Of the backbone whose features the metric is about; it means nothing for another one."""
    origin: str
    """The public images, in one sentence."""
    num_classes: int
    num_images: int


@dataclass(frozen=True)
class Metrics:
    """One backbone's metric at every rank that may be chosen."""

    of_rank: Mapping[int, Metric]
    origin: MetricOrigin

    def at(self, rank: int) -> Metric:
        """Return the metric at `rank`, or at the highest one that there is."""
        return self.of_rank[min(rank, max(self.of_rank))]

    def write(self, path: Path) -> None:
        """Write one safetensors file."""
        tensors: dict[str, Tensor] = {}
        scalars = {}
        for rank, metric in self.of_rank.items():
            fields = vars(metric)
            tensors |= {f"{rank}.{name}": value for name, value in fields.items() if isinstance(value, Tensor)}
            scalars[str(rank)] = {name: value for name, value in fields.items() if not isinstance(value, Tensor)}
        files.write_tensors(path, tensors, json.dumps({"format": FORMAT, **asdict(self.origin), "ranks": scalars}))


def fingerprint_of(path: Path) -> str:
    """Return the fingerprint of the backbone that a metric file is for; DataError if it is no metric file."""
    try:
        with safe_open(path, framework="pt") as file:
            return str(json.loads(file.metadata()["hushprompt"])["fingerprint"])
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is no metric file ({error}). Make one by `hushprompt features metric`.") from error


def read_metrics(path: Path, fingerprint: str) -> Metrics:
    """Read what `Metrics.write` wrote, for the backbone with this fingerprint.

    Raises:
        DataError: the file is missing, damaged or no metric, or belongs to another backbone.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["hushprompt"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if header["format"] != FORMAT:
            raise ValueError(f"its format is {header['format']!r}, this version reads {FORMAT!r}")
        origin = msgspec.convert(header, MetricOrigin)
        of_rank = {int(rank): _metric(rank, tensors, scalars) for rank, scalars in header["ranks"].items()}
        if not of_rank:
            raise ValueError("it holds no rank")
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path} is no metric file ({error}). Make one by `hushprompt features metric`.") from error
    if origin.fingerprint != fingerprint:
        raise DataError(
            f"The metric {path} was made for another backbone (fingerprint {origin.fingerprint[:12]}, this one has "
            f"{fingerprint[:12]}). Make one for this backbone by `hushprompt features metric`."
        )
    return Metrics(of_rank, origin)


def _metric(rank: str, tensors: Mapping[str, Tensor], values: Mapping[str, object]) -> Metric:
    """Put one rank's tensors and numbers together; ValueError where they do not fit or are not finite."""
    scalars = msgspec.convert(values, dict[str, float | None])
    own = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{rank}.")}
    d, r = len(own["mean"]), int(rank)
    shapes = {"directions": (d, r), "inverse": (d, r), "within": (r,), "mean": (d,), "constant": (d,), "unused": (d,)}
    for name, shape in shapes.items():
        if own[name].shape != shape or own[name].dtype != torch.float64 or not own[name].isfinite().all():
            raise ValueError(f"{rank}.{name} is not {list(shape)} finite numbers of float64")
    for name in ("between", "clip_mean", "clip_residual"):
        if not 0 < (scalars[name] or 0) < math.inf:
            raise ValueError(f"{rank}.{name} is no positive number")
    return Metric(**own, **scalars)  # type: ignore[arg-type]  # checked above


def choose_rank(images_per_class: float, noise_multiplier: float, num_holders: float) -> int:
    """Return the rank for a task, by public quantities alone: the higher one where class means are less noisy.

    Args:
        images_per_class: mean of the expected number of images of a class.
        noise_multiplier: of all releases of one client together; 0 without noise.
        num_holders: mean number of clients whose noise is in the sum of a class.
    """
    pays = images_per_class >= IMAGES_FOR_HIGH_RANK * noise_multiplier * num_holders**0.5
    return RANKS[-1] if pays else RANKS[0]


def make_metrics(
    features: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    origin: str,
    fingerprint: str,
    texts: Mapping[int, Float[Tensor, " d"]] | None = None,
) -> Metrics:
    """Make a backbone's metric from labeled public images.

    Args:
        features: [n, d] unit-norm image features.
        labels: [n] their classes, any numbers. A class with one image says nothing of the spread and is left out.
        origin: the images, in one sentence.
        fingerprint: of the backbone.
        texts: unit-norm text features by class, of some of the classes: without them there is no kappa, and the metric
            serves tasks without a text prior only.

    Raises:
        DataError: a feature is not finite, or fewer than 100 classes have two images or more.
    """
    if not features.isfinite().all():
        raise DataError("A public feature is not a finite number. Encode the images again, or leave that image out.")
    check_classes(labels)
    names, classes, counts = labels.unique(return_inverse=True, return_counts=True)
    kept = (counts >= 2)[classes]
    names, classes = names[counts >= 2], labels[kept].unique(return_inverse=True)[1]
    scatter = _Scatter.of(features[kept].double(), classes)
    d = features.shape[1]
    of_names = {int(name): place for place, name in enumerate(names)}
    pairs = {of_names[name]: text.double() for name, text in (texts or {}).items() if name in of_names}
    of_rank = {rank: scatter.metric(rank, pairs) for rank in sorted({min(rank, max(d // 2, 1)) for rank in RANKS})}
    return Metrics(
        of_rank,
        MetricOrigin(fingerprint=fingerprint, origin=origin, num_classes=len(names), num_images=int(kept.sum())),
    )


def check_classes(labels: Int64[Tensor, " n"]) -> None:
    """Raise DataError if fewer than 100 classes have two images or more: known before an image is encoded."""
    counts = labels.unique(return_counts=True)[1]
    if (num_usable := int((counts >= 2).sum())) < LEAST_CLASSES:
        raise DataError(
            f"A metric needs {LEAST_CLASSES} classes with two images or more each, and {num_usable} of {len(counts)} "
            "have them. Take more public images; their classes may be any."
        )


@dataclass(frozen=True)
class _Scatter:
    """What public images say of the spread of features, at full width."""

    features: Float64[Tensor, "n d"]
    class_means: Float64[Tensor, "c d"]
    residuals: Float64[Tensor, "n d"]
    whitening: Float64[Tensor, "d d"]
    """(S + rho)^-1/2."""
    coloring: Float64[Tensor, "d d"]
    """(S + rho)^1/2."""
    eigenvectors: Float64[Tensor, "d d"]
    """Of the whitened between-class covariance, the largest first."""
    eigenvalues: Float64[Tensor, " d"]

    @classmethod
    def of(cls, features: Float64[Tensor, "n d"], classes: Int64[Tensor, " n"]) -> _Scatter:
        """Measure the spread within and between classes 0 to c - 1; rho is at most the mean variance within them."""
        counts = classes.bincount().double()
        means = torch.zeros(len(counts), features.shape[1], dtype=torch.float64).index_add_(0, classes, features)
        means /= counts[:, None]
        residuals = features - means[classes]
        freedom = len(features) - len(counts)
        within = residuals.T @ residuals / freedom
        between = means.T.cov() - within * (1 / counts).mean()
        values, vectors = torch.linalg.eigh(within)
        values = values.clamp(min=0) + values.mean() * min(1.0, IMAGES_A_DIRECTION * len(values) / freedom)
        whitening, coloring = ((vectors * values**power) @ vectors.T for power in (-0.5, 0.5))
        of_between, directions = torch.linalg.eigh(whitening @ between @ whitening)
        return cls(features, means, residuals, whitening, coloring, directions.flip(1), of_between.flip(0))

    def metric(self, rank: int, texts: Mapping[int, Float64[Tensor, " d"]]) -> Metric:
        """Keep the first `rank` directions; `texts` are text features by class."""
        directions, inverse = self.whitening @ self.eigenvectors[:, :rank], self.coloring @ self.eigenvectors[:, :rank]
        mean = self.class_means.mean(dim=0)
        freedom = 1 - len(self.class_means) / len(self.features)
        residuals = self.residuals @ directions / freedom**0.5
        values = self.eigenvalues[:rank]
        second = self.features.T @ self.features / len(self.features)
        return Metric(
            directions, inverse, mean,
            constant=torch.linalg.lstsq(second, self.features.mean(dim=0)).solution,
            unused=torch.linalg.eigh(second)[1][:, 0],
            within=residuals.var(dim=0, correction=0),
            between=float(values.clamp(min=LEAST_BETWEEN * float(values[0])).mean()),
            clip_mean=float(((self.features - mean) @ directions).norm(dim=1).median()),
            clip_residual=float(residuals.norm(dim=1).median()),
            kappa=self._kappa(directions, inverse, texts),
        )  # fmt: skip

    def _kappa(
        self, directions: Float64[Tensor, "d r"], inverse: Float64[Tensor, "d r"], texts: Mapping[int, Tensor]
    ) -> float | None:
        """Fit the slope of class means on text features, both centered, by least squares."""
        if not texts:
            return None
        of_texts = _centered(torch.stack(list(texts.values()))) @ inverse
        of_means = _centered(self.class_means[list(texts)]) @ directions
        return float((of_texts * of_means).sum() / of_texts.square().sum())


def _centered(rows: Float64[Tensor, "c d"]) -> Float64[Tensor, "c d"]:
    """Take the mean row off."""
    return rows - rows.mean(dim=0)


SHIPPED = Path(__file__).parent.parent / "assets" / "emoji_clip_metric.safetensors"
"""The metric that comes with the package: of the embedded model."""


def metrics_of(backbone: Model, where: str = "auto") -> Metrics:
    """Return a backbone's metric.

    Args:
        backbone: whose image features it is about.
        where: a file; "auto": what the package or the cache has.

    Raises:
        UnfitError: there is none.
        DataError: the file is damaged, or belongs to another backbone.
    """
    encoder = encoder_of(backbone)
    if where != "auto":
        return read_metrics(Path(where).expanduser(), encoder)
    if fingerprint_of(SHIPPED) == encoder:
        return read_metrics(SHIPPED, encoder)
    if cached_path(encoder).exists():
        return read_metrics(cached_path(encoder), encoder)
    raise UnfitError(
        "Class statistics need a public metric of the backbone, and this one has none. Make it from any labeled public "
        "images, of 100 classes or more with two images or more each, by `hushprompt features metric`. Plain distances "
        "instead would lose about 5 points of accuracy, and fall below zero-shot with little budget."
    )


def encoder_of(backbone: Model) -> str:
    """Return the fingerprint of the model that makes the features: of another one, where features are given."""
    return str(getattr(backbone, "encoder", "")) or backbone.fingerprint


def metric_name(fingerprint: str) -> str:
    """Return the name of a metric's file.

    >>> metric_name("0123456789abcdef")
    'metric-0123456789ab.safetensors'
    """
    return f"metric-{fingerprint[:12]}.safetensors"


def cached_path(fingerprint: str) -> Path:
    """Return where `hushprompt features metric` puts a metric that is not told another place."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "hushprompt" / "metrics" / metric_name(fingerprint)
