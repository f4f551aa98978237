"""Images become features once per data set, backbone and preprocessing, and are kept on disk.

What decides the features is their key: fingerprints of the backbone and of the examples, the views, the precision. A
folder holds one key (`feature_files`), so a changed image, weight, preprocessing or setting finds another folder and a
stale one is never served. Where each thing is kept, how large it is and what a view changes: docs/feature-cache.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import math
import re
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image

from hushprompt import checks, seeding
from hushprompt.data.base import Dataset, Split
from hushprompt.errors import ConfigError, DataError, UnfitError
from hushprompt.extras import version_of
from hushprompt.features.store import ARRAY, FeatureFolder, FeatureKey, Precision, StoredFeatures, key_of
from hushprompt.models.base import FeatureKind, Model, encoder
from hushprompt.registry import SECTIONS

MAX_RATIO = 4 / 3
"""Largest width over height of a box; the smallest is its inverse."""
NUM_TRIES = 10
"""Boxes drawn until one fits; then the largest central box is taken."""


def random_view(
    image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator, *, min_scale: float, size: int
) -> UInt8[np.ndarray, "s s 3"]:
    """Return one view of an image, to be preprocessed by the backbone like any other image.

    Args:
        image: [h, w, 3] of any size.
        rng: stream of this view alone.
        min_scale: smallest share of the image's area that a view shows, in (0, 1].
        size: side s of the view in pixels.
    """
    top, left, height, width = random_box(image.shape[0], image.shape[1], rng, min_scale)
    box = image[top : top + height, left : left + width]
    view = np.asarray(Image.fromarray(box).resize((size, size), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(view[:, ::-1]) if rng.random() < 0.5 else view


def random_box(height: int, width: int, rng: np.random.Generator, min_scale: float) -> tuple[int, int, int, int]:
    """Draw top, left, height and width of a box inside an image of `height` x `width` pixels."""
    for _ in range(NUM_TRIES):
        area = height * width * rng.uniform(min_scale, 1.0)
        ratio = math.exp(rng.uniform(-math.log(MAX_RATIO), math.log(MAX_RATIO)))
        box_height, box_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = rng.integers(height - box_height + 1), rng.integers(width - box_width + 1)
            return int(top), int(left), box_height, box_width
    box_height = min(height, math.ceil(width * MAX_RATIO))
    box_width = min(width, math.ceil(height * MAX_RATIO))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


logger = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]
"""Called with (what, done, total) while images are encoded; first with what was done before."""
NUM_AHEAD = 1
"""Batches that are decoded while one is encoded."""
SHIPPED = Path(__file__).parent.parent / "assets"
"""A cache that comes with the package: the embedded drawings as the embedded model sees them, at the default settings.
Whoever takes these, on whatever processor, has the same features to the last bit."""
PACKAGES = ("hushprompt", "numpy", "open_clip_torch", "pillow", "timm", "torch", "torchvision", "transformers")
"""Packages that may have had a part in the features; the versions of those that are installed are written down."""


@SECTIONS.register("features")
@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """The `features` section: what is kept of every image. A change makes a cache of its own."""

    dtype: Precision = "float32"
    """Precision on disk; "float16" halves the disk and moves a cosine by less than 0.001. Arithmetic is float32."""
    num_views: int = 1
    """Views k of each training image, of which every step draws one; 1 is the image as it is, more are random crops."""
    min_scale: float = 0.08
    """Smallest share of the image's area that a random crop shows, in (0, 1]."""
    view_seed: int = 0
    """Seed of the crops. Apart from the run's seed, so that runs with other seeds find the views in the cache."""
    batch_size: int = 50
    """Images (views count) that the backbone encodes at a time, and that a kill costs. Lower it if memory is short."""

    def __post_init__(self) -> None:
        checks.positive(num_views=self.num_views, min_scale=self.min_scale, batch_size=self.batch_size)
        checks.in_range(0, 1, min_scale=self.min_scale)


@dataclass(frozen=True, kw_only=True)
class CachedFeatures:
    """One folder of the cache."""

    path: Path
    dataset: str
    split: str
    backbone: str
    """Fingerprint of the backbone."""
    num_examples: int
    feature_dim: int
    num_patches: int | None
    """None for pooled features."""
    num_views: int
    dtype: str
    num_bytes: int
    """Size of the array's file so far."""
    is_complete: bool
    """False where encoding is under way, or was stopped and can go on."""


def image_features(
    backbone: Model,
    dataset: Dataset,
    split: str,
    cache_dir: Path,
    config: FeaturesConfig,
    on_progress: Progress | None = None,
    kind: FeatureKind = "pooled",
) -> StoredFeatures:
    """Return the unit-norm features of one split: the package's own, the cache's, or encoded now.

    Encoding goes on where it stopped, however it stopped. Of two processes that want the same features one encodes, and
    the other waits for it, or takes over should it die.

    Args:
        backbone: the frozen model.
        dataset: whose images.
        split: "train", "validation" or "test"; only "train" has more than one view.
        cache_dir: folder of the cache; made if it is missing.
        config: views and precision.
        on_progress: called after every batch of images; not at all if nothing needs to be encoded. Of patches it also
            says how much disk they take.
        kind: one feature an image, or one a patch; of a generative model, what it reads stands for the first, and is
            not of unit norm.

    Raises:
        ConfigError: the backbone takes something else than the data set holds, sounds were to have views, or the
            backbone has no patches.
        DataError: an image cannot be read or has no finite features, or the disk is full; the next call goes on there.
    """
    check_fit(backbone, dataset, config)
    folder = folder_for(backbone, dataset, split, cache_dir, config, kind)
    places, alone, key = dataset.splits[split].images, _images_alone(dataset.splits[split]), folder.key
    what = f"encoding {dataset.name} {split}"
    if key.num_patches is not None:
        what += f", {key.num_patches} patches an image, {key.num_bytes / 1e6:.0f} MB"
    if key.num_tokens is not None:
        what += f", {key.num_tokens} tokens an example, {key.num_bytes / 1e6:.0f} MB"

    def report(num_done: int) -> None:
        if on_progress is not None:
            on_progress(what, num_done, key.num_examples)

    if not folder.is_ready():
        with folder.locked(on_wait=lambda: report(folder.num_logged())):
            if not folder.is_ready():  # another process may have finished while we waited
                _tell_stale(folder)
                _fill(folder, backbone, alone, report)
    return folder.read() if places is None else replace(folder.read(), places=places)


def folder_for(
    backbone: Model,
    dataset: Dataset,
    split: str,
    cache_dir: Path,
    config: FeaturesConfig,
    kind: FeatureKind = "pooled",
) -> FeatureFolder:
    """Return where features of a split lie or will lie, in the package or in a cache; nothing is made yet.

    Raises:
        ConfigError: the backbone has no features of that kind.
    """
    alone = {**dataset.splits, split: _images_alone(dataset.splits[split])}
    key = feature_key(backbone, replace(dataset, splits=alone), split, config, kind)
    shipped, folder = (FeatureFolder(folder_of(cache, key), key) for cache in (SHIPPED, cache_dir))
    if shipped.is_ready():
        return shipped
    if shipped.is_marked():
        logger.warning("Features that came with the package, in %s, are damaged. Install it again.", shipped.path)
    return folder


def _images_alone(split: Split) -> Split:
    """Return a split with one example for each image, the first that has it; it is for encoding alone."""
    if split.images is None:
        return split
    first = np.unique(split.images, return_index=True)[1]
    return replace(
        split, labels=split.labels[first], domains=split.domains[first], clients=None, groups=None, questions=None,
        answers=None, images=None, read=lambda indices: split.read(first[indices]),
    )  # fmt: skip


def check_fit(backbone: Model, dataset: Dataset, config: FeaturesConfig) -> None:
    """Raise ConfigError if the backbone cannot take what the data set holds."""
    can = backbone.capabilities
    if can.modality != dataset.modality:
        raise ConfigError(
            f"The backbone encodes {can.modality}, but the data set {dataset.name} holds {dataset.modality}. "
            f"Set backbone.name to a model for {dataset.modality}, or data.name to a data set of {can.modality}."
        )
    if dataset.feature_dim not in (None, backbone.feature_dim):
        raise ConfigError(
            f"The features of {dataset.name} have the width {dataset.feature_dim}, those of the backbone "
            f"{backbone.feature_dim}. Take both from one model."
        )
    if dataset.encoder and backbone.encoder not in ("", dataset.encoder):
        raise ConfigError(
            f"The features of {dataset.name} were made by the backbone {dataset.encoder[:12]}, the text features by "
            f"{backbone.encoder[:12]} (fingerprints). Take both from one model."
        )
    rate = can.sampling_rate
    if rate is not None and rate != dataset.sampling_rate:
        raise ConfigError(
            f"The backbone takes sounds of {rate} samples a second, but {dataset.name} is read with "
            f"{dataset.sampling_rate}. Set data.sampling_rate = {rate}."
        )
    if config.num_views > 1 and dataset.modality != "image":
        raise ConfigError(
            f"features.num_views = {config.num_views} needs images, since views are crops and flips, but "
            f"{dataset.name} holds {dataset.modality}. Set features.num_views = 1."
        )


def check_kind(backbone: Model, kind: FeatureKind) -> None:
    """Raise UnfitError if the backbone has no features of that kind."""
    if kind == "patches" and backbone.capabilities.num_patches is None:
        raise UnfitError(
            "The method needs features of image patches, which this backbone does not have. Use emoji_clip, CLIP of "
            "open_clip (ViT or ResNet) or CLIP of transformers, or a method that takes one feature an image."
        )


def feature_key(
    backbone: Model, dataset: Dataset, split: str, config: FeaturesConfig, kind: FeatureKind = "pooled"
) -> FeatureKey:
    """Return everything that decides the features of one split.

    Raises:
        ConfigError: the backbone has no features of that kind.
    """
    check_kind(backbone, kind)
    num_tokens = backbone.capabilities.num_tokens
    num_views = config.num_views if split == "train" else 1
    is_augmented = num_views > 1
    return FeatureKey(
        dataset=dataset.name,
        split=split,
        data=dataset.splits[split].fingerprint,
        backbone=backbone.fingerprint,
        num_examples=len(dataset.splits[split]),
        num_views=num_views,
        feature_dim=backbone.feature_dim,
        dtype=config.dtype if num_tokens is None else "float16",  # they are many, and most models have no more bits
        chunk_size=max(1, config.batch_size // num_views),
        min_scale=config.min_scale if is_augmented else None,
        view_seed=config.view_seed if is_augmented else None,
        view_size=backbone.capabilities.view_size if is_augmented else None,
        num_patches=backbone.capabilities.num_patches if kind == "patches" else None,
        num_tokens=num_tokens,
    )


def folder_of(cache_dir: Path, key: FeatureKey) -> Path:
    """Return where the features of a key are kept: names for a reader, and a hash of the whole key."""
    dataset = re.sub(r"[^\w.-]|^\.|^$", "_", key.dataset)[:100]
    whole = hashlib.sha256(json.dumps(key.to_json(), sort_keys=True).encode()).hexdigest()
    kind = "-patches" if key.num_patches is not None else "" if key.num_tokens is None else "-tokens"
    return cache_dir / "features" / dataset / f"{key.backbone[:12]}-{key.split}{kind}-{key.data[:12]}-{whole[:12]}"


def cached(cache_dir: Path) -> list[CachedFeatures]:
    """List what the cache holds, by data set and folder. Nothing is verified; other folders are passed over."""
    found = []
    for path in sorted((cache_dir / "features").glob("*/*/")):
        key = key_of(path)
        if key is None:
            continue
        array = path / ARRAY
        found.append(
            CachedFeatures(
                path=path,
                dataset=key.dataset,
                split=key.split,
                backbone=key.backbone,
                num_examples=key.num_examples,
                feature_dim=key.feature_dim,
                num_patches=key.num_patches,
                num_views=key.num_views,
                dtype=key.dtype,
                num_bytes=array.stat().st_size if array.exists() else 0,
                is_complete=array.exists() and FeatureFolder(path, key).is_marked(),
            )
        )
    return found


def _tell_stale(folder: FeatureFolder) -> None:
    """Say where the cache has features that differ in the fingerprint of the examples alone, as of changed files."""
    others = (key_of(path) for path in folder.path.parent.glob(f"{folder.key.backbone[:12]}-{folder.key.split}-*"))
    if any(
        key is not None and key != folder.key and replace(key, data=folder.key.data) == folder.key for key in others
    ):
        logger.warning(
            "The cache has features of %s %s for other bytes or dates of the files, or of an older version of "
            "hushprompt. They are not used: all are encoded anew.",
            folder.key.dataset, folder.key.split,
        )  # fmt: skip


def _fill(folder: FeatureFolder, backbone: Model, split: Split, report: Callable[[int], None]) -> None:
    """Encode what the folder lacks, batch by batch; the next batch is decoded while one is encoded."""
    missing = folder.prepare()
    batches = [folder.rows(chunk) for chunk in missing]
    num_done = folder.key.num_examples - sum(map(len, batches))
    report(num_done)
    with contextlib.closing(_decoded(folder.key, split, batches)) as decoded:
        for chunk, rows, images in zip(missing, batches, decoded, strict=True):
            folder.store(chunk, _encoded(folder.key, backbone, rows, images))
            num_done += len(rows)
            report(num_done)
    folder.finish(installed())


def _decoded(key: FeatureKey, split: Split, batches: Sequence[np.ndarray]) -> Generator[list[np.ndarray], None, None]:
    """Return the images, or views, of one batch after another; one thread works ahead."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="decode")
    coming: deque[Future[list[np.ndarray]]] = deque()
    try:
        for rows in batches:
            coming.append(pool.submit(_images, key, split, rows))
            if len(coming) > NUM_AHEAD:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _images(key: FeatureKey, split: Split, rows: np.ndarray) -> list[np.ndarray]:
    """Read examples; where they are augmented, give all views of the first, then of the second, and so on."""
    images = split.read(rows)
    if key.view_seed is None or key.min_scale is None:
        return images
    return [
        random_view(
            image,
            seeding.stream(key.view_seed, "views", int(index), view),
            min_scale=key.min_scale,
            size=key.view_size or min(image.shape[:2]),
        )
        for index, image in zip(rows, images, strict=True)
        for view in range(key.num_views)
    ]


def _encoded(
    key: FeatureKey, backbone: Model, rows: np.ndarray, images: list[np.ndarray]
) -> Float[np.ndarray, "b k *m d"]:
    """Encode the images of some examples, always as many at a time: the last batch is filled up.

    Matrix kernels choose their order of summation by the size of a batch. With one size, an example's feature does not
    depend on how many others there are.
    """
    missing = key.chunk_size * key.num_views - len(images)
    with torch.no_grad():
        encode = encoder(backbone, "pooled" if key.num_patches is None else "patches")
        features = encode([*images, *images[:1] * missing])[: len(images)]
    by_example = features.float().cpu().numpy().reshape(len(rows), key.num_views, *key.row_shape)
    axes = tuple(range(1, by_example.ndim))
    with np.errstate(over="ignore"):
        is_usable = np.isfinite(by_example.astype(key.dtype)).all(axis=axes) & by_example.any(axis=axes)
    if not is_usable.all():
        raise DataError(
            f"Example {rows[~is_usable][0]} of {key.dataset} {key.split} has features that are NaN or infinite, or all "
            f"zero. Look at that example and take it out, or use a backbone of higher precision or other weights."
        )
    return by_example


def installed() -> dict[str, str]:
    """Return the versions of the packages that may have had a part in the features."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = version_of(package)
    return versions
