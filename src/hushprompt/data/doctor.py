"""What is wrong, or may be, with a data set: checks that look at lists alone, and checks that read every example.

A run makes the cheap checks and says so in one line (`warn`); `hushprompt data info --verify` makes all of them.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hushprompt.data import groups
from hushprompt.data.base import Dataset, Split
from hushprompt.data.copies import CHUNK, across_clients, across_splits, find_copies, name_of, within_training
from hushprompt.data.decoding import SIXTEEN_BITS
from hushprompt.data.findings import Finding, finding
from hushprompt.data.listing import Decoded
from hushprompt.data.partitions.base import Partition
from hushprompt.errors import DataError
from hushprompt.user_text import alike

logger = logging.getLogger(__name__)
TINY = 16
"""Pixels of the shorter side below which an image is told as tiny."""
HUGE = 40_000_000
"""Pixels above which an image is told as huge."""
ORIENTATION = 0x0112
"""The EXIF tag that says how a picture is to be turned."""
TWELVE_BITS = 4096


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What reading one example showed."""

    name: str
    problem: str = ""
    """Why it cannot be read; empty if it can."""
    width: int = 0
    """Pixels; 0 for a sound."""
    height: int = 0
    """Pixels; 0 for a sound."""
    is_turned: bool = False
    """Whether a tag says that the picture is to be turned, which is not done."""
    is_dark: bool = False
    """Whether an image of 16 bits uses the lower 12 alone."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is examined."""

    dataset: Dataset
    partition: Partition | None = None
    """Who holds what; None: not known."""
    num_shots: int = 0
    """`partition.num_shots`: training examples that a client is to have of each of its classes; 0: all."""
    classes: Sequence[Sequence[int] | None] | None = None
    """Labels that each client of the partition is declared to have, None for one that declares none; None: nobody."""


def one_class(subject: Subject) -> list[Finding]:
    """Find a data set of one class."""
    is_alone = len(subject.dataset.class_names) == 1 and not subject.dataset.is_open
    names = subject.dataset.class_names if is_alone else ()
    return finding("one_class", "There is one class, so every answer is right", names, is_refused=True)


def classes_without(subject: Subject) -> list[Finding]:
    """Find classes that have no example for training, or none for test."""
    names, findings = subject.dataset.class_names, []
    for split in ("train", "test"):
        counts = np.bincount(subject.dataset.splits[split].labels, minlength=len(names))
        missing = [names[label] for label in np.flatnonzero(counts == 0)]
        findings += finding(f"classes_without_{split}", f"Classes have no {split} example", missing)
    return findings


def names_alike(subject: Subject) -> list[Finding]:
    """Find names that differ by case, spaces or underscores alone."""
    findings = []
    for what in ("class", "client", "domain", "group"):
        named = alike(getattr(subject.dataset, f"{what}_names"))
        message = f"Names differ by case, spaces or the writing of a number alone, and each is a {what} of its own"
        findings += finding(f"{what}_names_alike", message, [" = ".join(map(repr, group)) for group in named])
    return findings


def copies(subject: Subject) -> list[Finding]:
    """Find examples with equal bytes, across splits, across clients and within one client's training set."""
    dataset, partition = subject.dataset, subject.partition
    across = [*across_splits(dataset, dataset.copies), *across_clients(dataset, dataset.copies, partition)]
    return [*across, *within_training(dataset, dataset.copies, partition)]


def groups_apart(subject: Subject) -> list[Finding]:
    """Find groups, such as patients, that are in training and in another split, or at two clients."""
    return [*groups.across_splits(subject.dataset), *groups.across_clients(subject.dataset, subject.partition)]


def few_shots(subject: Subject) -> list[Finding]:
    """Find classes of clients that have fewer training examples than `partition.num_shots` asks for."""
    dataset, partition, num_shots = subject.dataset, subject.partition, subject.num_shots
    if partition is None or not num_shots:
        return []
    counts = partition.class_counts(dataset.splits["train"].labels, len(dataset.class_names))  # [k, c]
    names = [client.name or f"client {client.client_id}" for client in partition.clients]
    short = [
        f"{dataset.class_names[label]} at {names[client]}: {counts[client, label]}"
        for client, label in np.argwhere((counts > 0) & (counts < num_shots))
    ]
    return finding("few_shots", f"A client has fewer than {num_shots} training examples of a class", short)


def outside_declared(subject: Subject) -> list[Finding]:
    """Find training examples of classes that their client is declared not to have."""
    dataset, partition = subject.dataset, subject.partition
    if partition is None or subject.classes is None:
        return []
    labels, shown = dataset.splits["train"].labels, []
    for name, client, own in zip(partition.client_names, partition.clients, subject.classes, strict=False):
        found = np.unique(labels[client.indices["train"]])
        others = [] if own is None else [dataset.class_names[label] for label in found if label not in own]
        shown += [f"{other} at {name}" for other in others]
    message = "Training examples are of classes that their client is declared not to have, and no class sum takes them"
    return finding("outside_declared", message, shown)


LISTED: Sequence[Callable[[Subject], list[Finding]]] = (
    one_class, classes_without, names_alike, copies, groups_apart, few_shots, outside_declared,
)  # fmt: skip
"""Checks that read no example."""
READ: Mapping[str, tuple[str, Callable[[Examined], bool]]] = {
    "unreadable": ("Examples cannot be read", lambda one: bool(one.problem)),
    "turned": ("Images have an EXIF tag that turns them, which is not applied", lambda one: one.is_turned),
    "twelve_bits": ("Images of 16 bits use 12 of them, so they are nearly black", lambda one: one.is_dark),
    "tiny": (f"Images have a side of less than {TINY} pixels", lambda one: 0 < min(one.width, one.height) < TINY),
    "huge": (f"Images have more than {HUGE // 10**6} million pixels", lambda one: one.width * one.height > HUGE),
}  # fmt: skip
"""By kind, what is said and of which examples, once they are read."""


def quick(subject: Subject) -> list[Finding]:
    """Return what the lists alone show; of a user's own data, the reader has compared files of equal size."""
    return [*subject.dataset.findings, *(one for check in LISTED for one in check(subject))]


def examine(subject: Subject) -> list[Finding]:
    """Read every example, and return all that is found: what a run refuses first."""
    dataset, findings = subject.dataset, []
    examined = list(_examined(dataset))
    for kind, (message, holds) in READ.items():
        shown = [one.problem or one.name for one in examined if holds(one)]
        findings += finding(kind, message, shown, is_refused=kind == "unreadable")
    if not any(one.problem for one in examined):
        dataset = dataclasses.replace(dataset, copies=dataset.copies or find_copies(dataset.splits))
    findings += quick(dataclasses.replace(subject, dataset=dataset))
    return sorted(findings, key=lambda one: not one.is_refused)


def warn(subject: Subject, note: str = "") -> None:
    """Say in one line what the cheap checks find, if anything, and a note on it."""
    findings = quick(subject)
    if findings:
        what = "; ".join([*(one.line() for one in findings), *([note] if note else [])])
        logger.warning("Data set %s: %s. For more: hushprompt data info CONFIG --verify", subject.dataset.name, what)


def _examined(dataset: Dataset) -> Iterator[Examined]:
    """Read every example, side by side."""
    places = [(name, index) for name, split in dataset.splits.items() for index in range(len(split))]
    chunks = [places[start : start + CHUNK] for start in range(0, len(places), CHUNK)]

    def read(chunk: Sequence[tuple[str, int]]) -> list[Examined]:
        return [_examine(dataset.splits[place[0]], place[1], name_of(dataset, place)) for place in chunk]

    with ThreadPoolExecutor() as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # told as huge
        for part in pool.map(read, chunks):
            yield from part


def _examine(split: Split, index: int, name: str) -> Examined:
    try:
        (example,) = split.read(np.array([index]))
    except DataError as error:
        return Examined(name=name, problem=str(error))
    if example.ndim == 1:
        return Examined(name=name)
    height, width, _ = example.shape
    if not isinstance(split.read, Decoded):
        return Examined(name=name, width=width, height=height)
    with Image.open(io.BytesIO(split.read.source.fetch(int(split.read.rows[index])))) as image:
        is_turned = image.getexif().get(ORIENTATION, 1) not in (0, 1)
        is_dark = image.mode in SIXTEEN_BITS and int(np.asarray(image).max()) < TWELVE_BITS
    return Examined(name=name, width=width, height=height, is_turned=is_turned, is_dark=is_dark)
