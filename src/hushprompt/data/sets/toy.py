"""A tiny made-up data set: the one that tests use. Each class has a pattern of its own under noise."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hushprompt import checks, seeding
from hushprompt.data.base import Dataset, HeldByClients, Split
from hushprompt.errors import ConfigError
from hushprompt.registry import DATASETS

NAMES = (
    "ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay", "kiwi", "lynx", "mole", "newt", "owl", "pig",
)  # fmt: skip
SIDE = 8


@DATASETS.register("toy")
@dataclass(frozen=True, kw_only=True)
class ToyData(HeldByClients):
    """The `data` section of the toy data set."""

    is_public: ClassVar[bool] = True
    is_embedded: ClassVar[bool] = True
    """The package has it in itself: no file that a config names is read, and nothing is fetched."""
    num_classes: int = 6
    """Number of classes, at most 16."""
    num_train: int = 12
    """Training images a class; a quarter as many, at least 2, for validation and test."""
    group_size: int = 0
    """Images of a group, as if they were one person's; 0: nobody's."""

    def __post_init__(self) -> None:
        checks.positive(num_classes=self.num_classes, num_train=self.num_train)
        checks.non_negative(group_size=self.group_size)
        if self.num_classes > len(NAMES):
            raise ConfigError(f"data.num_classes must be at most {len(NAMES)}, got {self.num_classes}.")

    def load(self) -> Dataset:
        """Make the images; they depend on the fields alone."""
        patterns = seeding.stream(0, "toy patterns").integers(0, 256, size=(len(NAMES), SIDE, SIDE, 3))
        few = max(2, self.num_train // 4)
        splits, people = {}, 0
        for split, count in (("train", self.num_train), ("validation", few), ("test", few)):
            rng = seeding.stream(0, "toy images", split, self.num_classes, count)
            labels = np.repeat(np.arange(self.num_classes), count)
            noise = rng.integers(-60, 61, size=(len(labels), SIDE, SIDE, 3))
            images = np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8)
            splits[split] = Split(
                labels=labels,
                domains=labels * 0,
                groups=people + np.arange(len(labels)) // self.group_size if self.group_size else None,
                read=functools.partial(_pick, images),
                fingerprint=hashlib.sha256(images.tobytes()).hexdigest(),
            )
            people += -(-len(labels) // self.group_size) if self.group_size else 0
        return Dataset(
            name="toy",
            class_names=NAMES[: self.num_classes],
            domain_names=("noise",),
            group_names=tuple(f"person {number}" for number in range(people)),
            splits=splits,
            citation="Made up by hushprompt for its tests.",
            license="Apache-2.0",
        )


def _pick(images: np.ndarray, indices: np.ndarray) -> list[np.ndarray]:
    return list(images[indices])
