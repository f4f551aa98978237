"""Base-to-new generalization: clients train on some of the classes, and the prompts are scored on the others too.

Source: Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022 (arXiv:2203.05557), section
4.1, and the authors' code: the first half of the classes in label order, rounded up, are the base. Base images are
scored among the base classes, and new images among the new ones, by text features of names that nobody trained on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from hushprompt.data.base import Dataset
from hushprompt.data.partitions.base import Partition
from hushprompt.errors import ConfigError


@dataclass(frozen=True)
class BaseImages:
    """The images of a data set that show base classes."""

    dataset: Dataset
    """These images alone, with the names of the base classes."""
    places: Mapping[str, Int[np.ndarray, " n"]]
    """By split, where each of them is in the whole data set."""

    def in_whole(self, partition: Partition) -> Partition:
        """Return a partition of these images as one of the whole data set, in which nobody has the others."""
        clients = []
        for client in partition.clients:
            indices = {split: self.places[split][index] for split, index in client.indices.items()}
            clients.append(dataclasses.replace(client, indices=indices))
        return Partition(tuple(clients))


def num_base_classes(base_classes: float, num_classes: int) -> int:
    """Turn a fraction below 1, or a count, into the number of base classes; a fraction is rounded up.

    Raises:
        ConfigError: it leaves no class on one side, or is no whole number.

    >>> num_base_classes(0.5, 101)
    51
    """
    if base_classes >= 1 and base_classes != int(base_classes):
        raise ConfigError(
            f"evaluation.base_classes must be a fraction below 1 or a whole number of classes, got {base_classes}."
        )
    # The product of a fraction like 0.1 and a count must not grow by a rounding error.
    count = int(base_classes) if base_classes >= 1 else math.ceil(base_classes * num_classes - 1e-9)
    if not 1 <= count < num_classes:
        raise ConfigError(
            f"evaluation.base_classes = {base_classes:g} makes {count} of {num_classes} classes base classes, but both "
            "base and new classes are needed. Take a fraction such as 0.5."
        )
    return count


def base_images(dataset: Dataset, num_base: int) -> BaseImages:
    """Return the images of the first `num_base` classes."""
    places = {name: np.flatnonzero(split.labels < num_base) for name, split in dataset.splits.items()}
    splits = {
        name: dataset.splits[name].at(kept, f"{dataset.splits[name].fingerprint} of the first {num_base} classes")
        for name, kept in places.items()
    }
    kept_dataset = dataclasses.replace(dataset, class_names=dataset.class_names[:num_base], splits=splits)
    return BaseImages(kept_dataset, places)
