"""CIFAR-10 and CIFAR-100: small images of 10 and 100 classes, in the authors' Python files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hushprompt import checks
from hushprompt.data import pickles
from hushprompt.data.base import Dataset, Split
from hushprompt.data.listing import SPLITS, About, Example, Known, split_checksum
from hushprompt.data.splitting import hold_out
from hushprompt.errors import DataError
from hushprompt.registry import DATASETS

CITATION = "A. Krizhevsky. Learning Multiple Layers of Features from Tiny Images. Technical report, 2009."
LICENSE = "not stated by the authors"
HOMEPAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
ABOUT10 = About(
    name="cifar10",
    title="CIFAR-10",
    citation=CITATION,
    license=LICENSE,
    homepage=HOMEPAGE,
    folders=("cifar-10-batches-py",),
    needs=(
        "data_batch_1",
        "data_batch_2",
        "data_batch_3",
        "data_batch_4",
        "data_batch_5",
        "test_batch",
        "batches.meta",
    ),
    layout="cifar-10-batches-py/\n  data_batch_1 ... data_batch_5, test_batch, batches.meta",
    how_to_get=(
        f"1. Download the Python version, cifar-10-python.tar.gz, from {HOMEPAGE}.\n"
        "2. Unpack it into data/ (it makes cifar-10-batches-py/)."
    ),
    torchvision="CIFAR10",
)
ABOUT100 = About(
    name="cifar100",
    title="CIFAR-100",
    citation=CITATION,
    license=LICENSE,
    homepage=HOMEPAGE,
    folders=("cifar-100-python",),
    needs=("train", "test", "meta"),
    layout="cifar-100-python/\n  train, test, meta",
    how_to_get=(
        f"1. Download the Python version, cifar-100-python.tar.gz, from {HOMEPAGE}.\n"
        "2. Unpack it into data/ (it makes cifar-100-python/)."
    ),
    torchvision="CIFAR100",
)


@dataclass(frozen=True)
class Pixels:
    """Decoded images that fit in memory."""

    images: np.ndarray
    """uint8 [n, h, w, 3]"""

    def __call__(self, indices: np.ndarray) -> list[np.ndarray]:
        """Return images [h, w, 3] by index."""
        return list(self.images[indices])


@dataclass(frozen=True, kw_only=True)
class Cifar(Known):
    """Fields of both."""

    validation_fraction: float = 0.0
    """Share of each class's training images that is held out for choosing settings; the authors hold out none."""

    def __post_init__(self) -> None:
        checks.in_range(0, 0.9, validation_fraction=self.validation_fraction)

    def read(self, files: Mapping[str, str], labels_key: bytes, meta: str, names_key: bytes) -> Dataset:
        """Read the files.

        Args:
            files: split of each file.
            labels_key: where a file keeps its labels.
            meta: file of class names.
            names_key: where that keeps them.
        """
        home = self.home()
        class_names = tuple(name.decode().replace("_", " ") for name in _read(home / meta, names_key))
        parts, examples = [], []
        for file, split in files.items():
            data, labels = _read(home / file, b"data"), _read(home / file, labels_key)
            if np.shape(data) != (len(labels), 3072):
                raise DataError(f"{home / file} must have one row of 3072 bytes for each label. Get it again.")
            parts.append(np.asarray(data, dtype=np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            examples += [Example(f"{file}[{row}]", int(label), split) for row, label in enumerate(labels)]
        rows = {example.name: row for row, example in enumerate(examples)}
        examples = hold_out(examples, class_names, self.about.name, self.validation_fraction)
        pixels = np.concatenate(parts)
        source = f"the authors' {', '.join(files)}"
        if self.validation_fraction:
            source += f"; {self.validation_fraction:g} of each class held out for validation by hushprompt"
        return Dataset(
            name=self.about.name,
            class_names=class_names,
            domain_names=("all",),
            splits={
                split: _split([example for example in examples if example.split == split], pixels, rows)
                for split in SPLITS
                if any(example.split == split for example in examples)
            },
            citation=self.about.citation,
            license=self.about.license,
            split_source=source,
            split_checksum=split_checksum(examples),
        )


@DATASETS.register("cifar10")
@dataclass(frozen=True, kw_only=True)
class Cifar10(Cifar):
    """CIFAR-10: 10 classes, 60,000 images of 32 x 32 pixels. Split: the authors' train and test."""

    about: ClassVar[About] = ABOUT10

    def load(self) -> Dataset:
        """Read the batches."""
        files = {f"data_batch_{number}": "train" for number in range(1, 6)} | {"test_batch": "test"}
        return self.read(files, b"labels", "batches.meta", b"label_names")


@DATASETS.register("cifar100")
@dataclass(frozen=True, kw_only=True)
class Cifar100(Cifar):
    """CIFAR-100: 100 classes, 60,000 images of 32 x 32 pixels. Split: the authors' train and test."""

    about: ClassVar[About] = ABOUT100

    def load(self) -> Dataset:
        """Read the two files."""
        return self.read({"train": "train", "test": "test"}, b"fine_labels", "meta", b"fine_label_names")


def _read(path: Path, key: bytes) -> Any:
    content = pickles.load(path, encoding="bytes")
    if not isinstance(content, dict) or key not in content:
        raise DataError(f"{path} has no {key.decode()}. Get the Python version of the data set.")
    return content[key]


def _split(examples: Sequence[Example], pixels: np.ndarray, rows: Mapping[str, int]) -> Split:
    labels = np.array([example.label for example in examples], dtype=np.int64)
    images = pixels[[rows[example.name] for example in examples]]
    return Split(
        labels=labels,
        domains=labels * 0,
        read=Pixels(images),
        fingerprint=hashlib.sha256(images.tobytes()).hexdigest(),
    )
