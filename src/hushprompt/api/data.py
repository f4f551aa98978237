"""What is in a data set, how to get one, and how it is split over clients."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hushprompt.config import parse as configs
from hushprompt.config.schema import RunConfig, RuntimeConfig
from hushprompt.config.values import choose
from hushprompt.data import fetch as fetching
from hushprompt.data.base import Dataset
from hushprompt.data.listing import About
from hushprompt.data.partitions.base import Partition
from hushprompt.errors import DataError
from hushprompt.features.cache import SHIPPED, CachedFeatures, cached
from hushprompt.federation.setup import make_partition
from hushprompt.registry import DATASETS, PARTITIONS
from hushprompt.reporting import partitions
from hushprompt.reporting.partitions import Counts


@dataclass(frozen=True)
class DataInfo:
    """A data set, which is loaded when it is asked for, and what of it need not be encoded."""

    section: Any
    """Its section of a config."""
    cache_dir: Path
    """Where features are kept."""

    @property
    def about(self) -> About | None:
        """What is known of the data set before it is there; None for one's own."""
        known: About | None = getattr(self.section, "about", None)
        return known

    @functools.cached_property
    def dataset(self) -> Dataset:
        """Classes and splits, with license, citation and checksums."""
        loaded: Dataset = self.section.load()
        return loaded

    @property
    def shipped(self) -> list[CachedFeatures]:
        """Features that come with the package."""
        return [entry for entry in cached(SHIPPED) if entry.dataset == self.dataset.name]

    @property
    def cached(self) -> list[CachedFeatures]:
        """Features in the cache."""
        return [entry for entry in cached(self.cache_dir) if entry.dataset == self.dataset.name]

    def unreadable(self) -> list[str]:
        """Read every example, and return what is wrong with those that cannot be read."""
        problems = []
        for split in self.dataset.splits.values():
            for index in range(len(split)):
                try:
                    split.read(np.array([index]))
                except DataError as error:
                    problems.append(str(error))
        return problems


def data_info(data: Any = None, *, root: str | Path | None = None, cache_dir: str = "", **settings: Any) -> DataInfo:
    """Return classes, splits, license, citation and checksums of a data set, and what of it is cached.

    Args:
        data: name of a data set, its section as an object or a table, a config, a TOML file, or a preset's name; None:
            the embedded preset's.
        root: its folder.
        cache_dir: folder of cached features; empty: the usual one.
        settings: other settings of the section to change.

    Raises:
        ConfigError: there is no such data set.
        DataError: it is not there, or damaged; when it is loaded.
    """
    if root is not None:
        settings["root"] = str(root)
    return DataInfo(data_config(data, settings), RuntimeConfig(cache_dir=cache_dir).cache_path)


def data_config(data: Any, settings: Mapping[str, Any]) -> Any:
    """Return the data section that something stands for."""
    if isinstance(data, Mapping):
        return choose("data", {**data, **settings})
    if isinstance(data, (str, Path)) and configs.locate(Path(data)).suffix != ".toml":
        return choose("data", {"name": str(data), **settings})
    if data is not None and not isinstance(data, (str, Path, RunConfig)):
        data = RunConfig(data=data)
    return configs.resolve(data, {"data": settings} if settings else {}).data


def about(name: str) -> About:
    """Return what is known of a data set before it is there: title, license, citation, homepage.

    Raises:
        DataError: nothing, for it comes with this package or is the user's own.
    """
    known: About | None = getattr(DATASETS.get(name), "about", None)
    if known is None:
        raise DataError(f"There is nothing to fetch for {name}: it comes with hushprompt, or is your own.")
    return known


def fetch(name: str, root: str | Path = "data") -> Path:
    """Download a data set, or say what to get from where.

    Args:
        name: of the data set.
        root: folder that the data set's own folder goes into.

    Returns:
        `root`.

    Raises:
        DataError: there is nothing to fetch, it must be fetched by hand, or what came is damaged.
    """
    fetching.fetch(about(name), Path(root))
    return Path(root)


def partition(
    config: RunConfig | Mapping[str, Any] | str | Path | None = None, *, out: str | Path | None = None, **sections: Any
) -> Counts:
    """Split a config's data set over its clients, and count every client's examples by split and class.

    Args:
        config: as for `run`.
        out: folder for partition.csv and partition.png; None: they are not written.
        sections: as for `run`.

    Raises:
        ConfigError: the data set cannot be split so.
    """
    resolved = configs.resolve(config, sections)
    dataset = resolved.data.load()
    counts = count(dataset, make_partition(resolved, dataset))
    if out is not None:
        title = f"{dataset.name}: {PARTITIONS.name_of(resolved.partition)}, seed {resolved.seed}"
        partitions.write_csv(Path(out) / "partition.csv", counts)
        partitions.write_plot(Path(out) / "partition.png", counts, title)
    return counts


def count(dataset: Dataset, clients: Partition) -> Counts:
    """Count the examples of every client, split and class."""
    num_classes = len(dataset.class_names)
    return Counts(
        dataset=dataset.name,
        client_names=[client.name or f"client {client.client_id}" for client in clients.clients],
        class_names=dataset.class_names,
        by_split={
            name: clients.class_counts(dataset.splits[name].labels, num_classes, name)
            for name in ("train", "validation", "test")
            if name in dataset.splits
        },
    )
