"""Image features are computed once per data set, split and backbone, and kept on disk.

A file holds one split: `features/<data set>/<backbone>-<split>-<data>.safetensors`, with both full fingerprints in its
metadata. A changed image, label, weight or preprocessing changes a fingerprint, so a stale file is never read; a
damaged one is detected and made again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hushprompt import files
from hushprompt.backbones.base import Backbone
from hushprompt.data.base import Dataset

logger = logging.getLogger(__name__)
BATCH = 250
Progress = Callable[[str, int, int], None]
"""Called with (what, done, total) while images are encoded."""


def image_features(
    backbone: Backbone, dataset: Dataset, split: str, cache_dir: Path, on_progress: Progress | None = None
) -> Float[Tensor, "n d"]:
    """Give the unit-norm features [n, d] of one split, from the cache or by encoding its images.

    Args:
        backbone: the frozen model.
        dataset: whose images.
        split: "train", "validation" or "test".
        cache_dir: folder of the cache; made if it is missing.
        on_progress: called after every batch of images.

    Raises:
        DataError: an image cannot be read.
    """
    images = dataset.splits[split]
    path = cache_path(backbone, dataset, split, cache_dir)
    expected = json.dumps({"backbone": backbone.fingerprint, "data": images.fingerprint, "split": split})
    cached = _read(path, expected, (len(images), backbone.feature_dim))
    if cached is not None:
        return cached
    parts = []
    for start in range(0, len(images), BATCH):
        index = np.arange(start, min(start + BATCH, len(images)))
        parts.append(backbone.encode_images(images.read(index)).float())
        if on_progress is not None:
            on_progress(f"encoding {dataset.name} {split}", int(index[-1]) + 1, len(images))
    features = torch.cat(parts) if parts else torch.zeros(0, backbone.feature_dim)
    files.write_tensors(path, {"image_features": features}, expected)
    return features


def cache_path(backbone: Backbone, dataset: Dataset, split: str, cache_dir: Path) -> Path:
    """Give where the features of one split are kept."""
    key = f"{backbone.fingerprint[:12]}-{split}-{dataset.splits[split].fingerprint[:12]}.safetensors"
    return cache_dir / "features" / dataset.name / key


def _read(path: Path, expected: str, shape: tuple[int, int]) -> Tensor | None:
    """Read a cached file; None if it is missing, damaged or of something else."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get("hushprompt")
            features: Tensor = file.get_tensor("image_features")
    except (SafetensorError, OSError) as error:
        logger.warning("Cached features in %s are damaged (%s) and are made again.", path, error)
        return None
    if metadata != expected or tuple(features.shape) != shape or not bool(features.isfinite().all()):
        logger.warning("Cached features in %s belong to something else and are made again.", path)
        return None
    return features
