"""The commands about data: what is in a data set, how to get one, how it is cut into clients."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import hushprompt as hp
from hushprompt.cli.console import ConfigFile, console
from hushprompt.config import parse as configs
from hushprompt.errors import DataError
from hushprompt.registry import PARTITIONS
from hushprompt.reporting.formats import WholeTable
from hushprompt.words import counted

if TYPE_CHECKING:
    import numpy as np

    from hushprompt.api.data import DataInfo
    from hushprompt.data.base import Dataset
    from hushprompt.data.listing import About
    from hushprompt.features.cache import CachedFeatures


class InfoFormat(StrEnum):
    """How `data info` prints."""

    TABLE = "table"
    JSON = "json"


def info(
    what: Annotated[str, typer.Argument(metavar="CONFIG|NAME", help="Config, preset, or data set.")] = "embedded",
    root: Annotated[str | None, typer.Option(help="With a data set's name: its folder.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override, such as data.root=images.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every example, and say what is wrong or may be.")
    ] = False,
    format_: Annotated[InfoFormat, typer.Option("--format", help="How to print it.")] = InfoFormat.TABLE,
    cache_dir: Annotated[str, typer.Option(help="Folder of cached features, as runtime.cache_dir.")] = "",
) -> None:
    """Print classes, splits, license, citation and checksums of a data set, what is cached, and what may be wrong."""
    found = hp.data_info(data_of(what, set_ or []), root=root, cache_dir=cache_dir)
    if found.about is not None and format_ is InfoFormat.TABLE:
        show_about(found.about)
    found = dataclasses.replace(found, is_verified=verify)
    if format_ is InfoFormat.JSON:
        console.print_json(json.dumps(found.to_json()))
    else:
        show_dataset(found.dataset, has_about=found.about is not None)
        show_findings(found)
        show_cached(found)
    if verify and (refused := [one for one in found.findings if one.is_refused]):
        raise DataError(f"A run refuses {found.dataset.name}: {'; '.join(one.line() for one in refused)}.")


def fetch(
    name: Annotated[str, typer.Argument(help="Data set, as in: hushprompt list datasets")],
    root: Annotated[Path, typer.Option(help="Folder that the data set's own folder goes into.")] = Path("data"),
) -> None:
    """Download a data set, or say what to get from where."""
    from hushprompt.api.data import about as about_of

    about = about_of(name)
    show_about(about)
    hp.fetch(name, root)
    console.print(f"{about.title} is in {root}. Use it with: --set data.name={name} --set data.root={root}")


def partition(
    config: ConfigFile = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override, such as partition.alpha=0.1.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for partition.csv and partition.png.")] = Path("partition"),
) -> None:
    """Print the clients x classes table of a config, and write it and a plot."""
    from hushprompt.reporting import partitions

    resolved = configs.load(configs.locate(config), set_ or [])
    counts = hp.partition(resolved, out=out)
    name = PARTITIONS.name_of(resolved.partition)
    console.print(f"{counts.dataset}, {name}, {counted(len(counts.client_names), 'client')}, seed {resolved.seed}")
    console.print(partitions.client_table(counts))
    console.print("Training examples, one column a class in label order; a full block: the client with most of it.")
    for line in partitions.shade_lines(counts, console.width):
        console.print(line, markup=False, no_wrap=True, overflow="crop")
    for file in ("partition.csv", "partition.png"):
        console.print(f"  {out / file}", soft_wrap=True)


def data_of(what: str, overrides: list[str]) -> Any:
    """Return the data section of a config file or preset, or a data set's name with its settings."""
    path = configs.locate(Path(what))
    if path.suffix == ".toml":
        return configs.load(path, overrides)
    values: dict[str, Any] = {"data": {"name": what}}
    for override in overrides:
        values = configs.override(values, override)
    return values["data"]


def show_about(about: About) -> None:
    """Print what is known of a data set before it is there."""
    for what, text in (
        ("title", about.title), ("license", about.license), ("citation", about.citation), ("homepage", about.homepage),
    ):  # fmt: skip
        console.print(f"{what}: {text}", markup=False, soft_wrap=True)


def show_dataset(dataset: Dataset, *, has_about: bool) -> None:
    """Print classes, splits and sizes of a loaded data set."""
    import numpy as np

    lines = {"name": dataset.name}
    if not has_about:
        lines |= {"license": dataset.license, "citation": dataset.citation}
    lines["examples are"] = {
        "image": "images",
        "audio": f"sounds, {dataset.sampling_rate} samples/s",
        "features": f"features, {dataset.feature_dim} numbers each",
    }[dataset.modality]
    if dataset.is_open:
        lines["examples are"] += ", with questions and answers"
    if not dataset.is_open or len(dataset.class_names) > 1:
        what = "kinds of questions" if dataset.is_open else counted(len(dataset.class_names), "class")
        lines[what] = ", ".join(dataset.class_names)
    if len(dataset.domain_names) > 1:
        lines[f"{len(dataset.domain_names)} domains"] = ", ".join(dataset.domain_names)
    if dataset.client_names:
        lines[counted(len(dataset.client_names), "client")] = ", ".join(dataset.client_names)
    groups = [split.groups for split in dataset.splits.values() if split.groups is not None]
    if groups:
        sizes = np.unique(np.concatenate(groups), return_counts=True)[1]
        lines[counted(len(sizes), "group")] = f"{_range(sizes)} examples each"
    lines["split by"] = dataset.split_source or "the data's own"
    lines["split checksum"] = dataset.split_checksum or "none"
    lines["left out as unreadable"] = str(dataset.num_skipped)
    for what, text in lines.items():
        console.print(f"{what}: {text}", markup=False, soft_wrap=True)
    table = WholeTable("split", "examples", "per kind" if dataset.is_open else "per class", "per domain", "fingerprint")
    for name, split in dataset.splits.items():
        per_class = np.bincount(split.labels, minlength=len(dataset.class_names))
        per_domain = np.bincount(split.domains, minlength=len(dataset.domain_names))
        table.add_row(name, str(len(split)), _range(per_class), _range(per_domain), split.fingerprint[:12])
    console.print(table)


def show_cached(found: DataInfo) -> None:
    """Print the features of a data set that need not be encoded, and the disk they take."""
    if found.shipped:
        console.print("features that come with the package:")
        console.print(_table_of(found.shipped))
    if not found.cached:
        console.print(f"cached features: none in {found.cache_dir}", markup=False, soft_wrap=True)
        return
    total = sum(entry.num_bytes for entry in found.cached) / 1e6
    console.print(f"cached features: {total:.1f} MB in {found.cache_dir}", markup=False, soft_wrap=True)
    console.print(_table_of(found.cached))


def _table_of(entries: Sequence[CachedFeatures]) -> WholeTable:
    """List folders of features."""
    table = WholeTable("split", "backbone", "features", "views", "dtype", "MB", "state")
    for entry in entries:
        table.add_row(
            entry.split,
            entry.backbone[:12],
            " x ".join(str(n) for n in (entry.num_examples, entry.num_patches, entry.feature_dim) if n is not None),
            str(entry.num_views),
            entry.dtype,
            f"{entry.num_bytes / 1e6:.1f}",
            "complete" if entry.is_complete else "goes on when next used",
        )
    return table


def show_findings(found: DataInfo) -> None:
    """Print what is wrong, or may be, one line each."""
    for one in found.findings:
        refused = "a run refuses this: " if one.is_refused else ""
        console.print(f"- {refused}{one.line()}", markup=False, soft_wrap=True)
    if found.is_verified and not any(one.kind == "unreadable" for one in found.findings):
        console.print("Every example can be read.")


def _range(counts: np.ndarray) -> str:
    """Write the smallest and the largest count."""
    low, high = int(counts.min()), int(counts.max())
    return str(low) if low == high else f"{low} to {high}"
