"""What a loaded data set is: class names in label order, and splits whose images are decoded only when asked for.

A registered frozen dataclass in this folder is the `data` section of a config; its `load()` gives a `Dataset`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from hushprompt.errors import DataError


@runtime_checkable
class ImageReader(Protocol):
    """Decodes images of one split on demand."""

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """Give uint8 images [m, h, w, 3] in the order of `indices`.

        Raises:
            DataError: an image cannot be read; the message names it.
        """


@dataclass(frozen=True, kw_only=True)
class ImageSplit:
    """The examples of one split."""

    labels: np.ndarray
    """[n] int64 class of each image."""
    domains: np.ndarray
    """[n] int64 domain of each image (vendor, site, style); zeros where there is one."""
    read: ImageReader
    """Gives images by index."""
    fingerprint: str
    """SHA-256 over the encoded images, in order; the key of cached features."""

    def __len__(self) -> int:
        """Number of images n."""
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Images of named classes, cut into train, validation and test.

    Raises:
        DataError: names repeat, or a label or domain has no name.
    """

    name: str
    class_names: tuple[str, ...]
    """Names in label order: an ordered list, never a set."""
    domain_names: tuple[str, ...]
    """Names in domain order; one name where there is one domain."""
    splits: Mapping[str, ImageSplit]
    """By name: "train" and "test", and "validation" where there is one."""
    citation: str
    license: str

    def __post_init__(self) -> None:
        """Check labels and domains against their names."""
        for what, names in (("class", self.class_names), ("domain", self.domain_names)):
            if len(set(names)) < len(names):
                repeated = sorted({name for name in names if names.count(name) > 1})
                raise DataError(f"Data set {self.name}: these {what} names occur twice: {repeated}. Give each its own.")
        if not {"train", "test"} <= set(self.splits):
            raise DataError(f"Data set {self.name} needs the splits train and test, got {sorted(self.splits)}.")
        for split_name, split in self.splits.items():
            for what, values, names in (
                ("label", split.labels, self.class_names),
                ("domain", split.domains, self.domain_names),
            ):
                if len(values) != len(split):
                    raise DataError(
                        f"Data set {self.name}, {split_name}: {len(values)} {what}s for {len(split)} images."
                    )
                if len(values) and not 0 <= values.min() <= values.max() < len(names):
                    raise DataError(
                        f"Data set {self.name}, {split_name}: {what}s run from {values.min()} to {values.max()}, "
                        f"but there are {len(names)} {what} names."
                    )


@runtime_checkable
class DatasetConfig(Protocol):
    """What the loop asks of a registered data set."""

    def load(self) -> Dataset:
        """Read the data set, or say what is missing and where to put it."""
