"""What is in a data set, how to get one, and how it is split over clients."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hushprompt.config import parse as configs
from hushprompt.config.schema import RunConfig, RuntimeConfig
from hushprompt.config.values import choose
from hushprompt.data import doctor, listing
from hushprompt.data.base import Dataset
from hushprompt.data.findings import Finding
from hushprompt.data.listing import About
from hushprompt.data.partitions.base import Partition
from hushprompt.errors import ConfigError, DataError, files_told
from hushprompt.features.cache import SHIPPED, CachedFeatures, cached
from hushprompt.federation.setup import declared_classes, make_partition
from hushprompt.registry import DATASETS, PARTITIONS
from hushprompt.reporting import partitions
from hushprompt.reporting.partitions import Counts


@dataclass(frozen=True)
class DataInfo:
    """A data set, which is loaded when it is asked for: what is in it, what is cached, and what may be wrong."""

    section: Any
    """Its section of a config."""
    cache_dir: Path
    """Where features are kept."""
    config: RunConfig | None = None
    """The config it stands in, whose partition is looked at too."""
    is_verified: bool = False
    """Whether every example is read to find what is wrong."""

    @property
    def about(self) -> About | None:
        """What is known of the data set before it is there; None for one's own."""
        known: About | None = getattr(self.section, "about", None)
        return known

    @functools.cached_property
    def dataset(self) -> Dataset:
        """Classes and splits, with license, citation and checksums; copies, which a run refuses, are only told."""
        section = dataclasses.replace(self.section, duplicates="allow") if self._refuses_copies else self.section
        loaded: Dataset = section.load()
        return dataclasses.replace(loaded, duplicates="refuse") if self._refuses_copies else loaded

    @functools.cached_property
    def findings(self) -> list[Finding]:
        """What may be wrong, what a run refuses first; from lists alone unless `is_verified`."""
        config = self.config
        partition = None if config is None else partition_of(config, self.dataset)
        subject = doctor.Subject(
            dataset=self.dataset,
            partition=partition,
            num_shots=0 if config is None else config.partition.num_shots,
            classes=declared_classes(config, self.dataset.class_names) if config and partition else None,
        )
        return doctor.examine(subject) if self.is_verified else doctor.quick(subject)

    @property
    def _refuses_copies(self) -> bool:
        """Whether a run refuses copies in two splits or at two clients."""
        return getattr(self.section, "duplicates", "allow") == "refuse"

    @property
    def shipped(self) -> list[CachedFeatures]:
        """Features that come with the package."""
        return [entry for entry in cached(SHIPPED) if entry.dataset == self.dataset.name]

    @property
    def cached(self) -> list[CachedFeatures]:
        """Features in the cache."""
        return [entry for entry in cached(self.cache_dir) if entry.dataset == self.dataset.name]

    def to_json(self) -> dict[str, Any]:
        """Return plain values: what the data set is, its splits, and what may be wrong with it."""
        dataset = self.dataset
        return {
            "name": dataset.name,
            "class_names": list(dataset.class_names),
            "is_open": dataset.is_open,
            "domain_names": list(dataset.domain_names),
            "client_names": list(dataset.client_names),
            "num_examples": {name: len(split) for name, split in dataset.splits.items()},
            "num_groups": {
                name: len(np.unique(split.groups)) for name, split in dataset.splits.items() if split.groups is not None
            },
            "license": dataset.license,
            "citation": dataset.citation,
            "split_source": dataset.split_source,
            "split_checksum": dataset.split_checksum,
            "num_skipped": dataset.num_skipped,
            "is_verified": self.is_verified,
            "findings": [dataclasses.asdict(one) for one in self.findings],
        }


@files_told()
def data_info(
    data: Any = None, *, root: str | Path | None = None, cache_dir: str = "", verify: bool = False, **settings: Any
) -> DataInfo:
    """Return classes, splits, license, citation and checksums of a data set, what of it is cached, and what is wrong.

    Args:
        data: name of a data set, its section as an object or a table, a config, a TOML file, or a preset's name; None:
            the embedded preset's.
        root: its folder.
        cache_dir: folder of cached features; empty: the usual one.
        verify: whether `findings` reads every example; else they are what lists of files and names show.
        settings: other settings of the section to change.

    Raises:
        ConfigError: there is no such data set.
        DataError: it is not there, or damaged; when it is loaded.
    """
    if root is not None:
        settings["root"] = str(root)
    section, config = data_config(data, settings)
    info = DataInfo(section, RuntimeConfig(cache_dir=cache_dir).cache_path, config, is_verified=verify)
    if verify:
        info.findings  # noqa: B018  read now, not when it is printed
    return info


def data_config(data: Any, settings: Mapping[str, Any]) -> tuple[Any, RunConfig | None]:
    """Return the data section that something stands for, and the config that it stands in."""
    if isinstance(data, Mapping):
        return choose("data", {**data, **settings}), None
    if isinstance(data, (str, Path)) and configs.locate(Path(data)).suffix != ".toml":
        return choose("data", {"name": str(data), **settings}), None
    if data is not None and not isinstance(data, (str, Path, RunConfig)):
        return configs.resolve(RunConfig(data=data), {"data": settings} if settings else {}).data, None
    config = configs.resolve(data, {"data": settings} if settings else {})
    return config.data, config


def partition_of(config: RunConfig, dataset: Dataset) -> Partition | None:
    """Return who holds what by a config; None where its partition does not fit, which a run says."""
    try:
        return make_partition(config, dataclasses.replace(dataset, duplicates="allow"))
    except ConfigError:
        return None


def about(name: str) -> About:
    """Return what is known of a data set before it is there: title, license, citation, homepage.

    Raises:
        DataError: nothing, for it comes with this package or is the user's own.
    """
    known: About | None = getattr(DATASETS.get(name), "about", None)
    if known is None:
        raise DataError(f"There is nothing to fetch for {name}: it comes with hushprompt, or is your own.")
    return known


@files_told()
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
    listing.fetch(about(name), Path(root))
    return Path(root)


@files_told()
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
