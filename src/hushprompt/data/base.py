"""A loaded data set: class names in label order, and splits whose examples are decoded on demand.

A registered frozen dataclass in this folder is the `data` section of a config; its `load()` returns a `Dataset`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from hushprompt.data.findings import Finding
from hushprompt.errors import ConfigError, DataError
from hushprompt.user_text import nfc

Duplicates = Literal["refuse", "allow", "group"]
"""What happens where files with equal bytes are in training and in test, or at two clients."""
Copies = tuple[tuple[str, int], ...]
"""Examples of equal bytes: split and index within it."""
Modality = Literal["image", "audio", "features"]
"""What an example is, and so which tower of a backbone encodes it; features were encoded before."""


@runtime_checkable
class Reader(Protocol):
    """Decodes examples of one split on demand."""

    def __call__(self, indices: np.ndarray) -> list[np.ndarray]:
        """Return examples in the order of `indices`.

        Returns:
            m arrays: uint8 images [h, w, 3], each of its own size, or float32 mono waveforms [samples] or features [d].

        Raises:
            DataError: an example cannot be read; the message names its file.
        """


@dataclass(frozen=True, kw_only=True)
class Split:
    """The examples of one split."""

    labels: np.ndarray
    """[n] int64 class of each example."""
    domains: np.ndarray
    """[n] int64 domain of each example (vendor, site, style); zeros where there is one."""
    clients: np.ndarray | None = None
    """[n] int64 client of each example, where the data says who holds it."""
    groups: np.ndarray | None = None
    """[n] int64 group of each example (a patient, a customer, a document), where the data says whose it is."""
    questions: tuple[str, ...] | None = None
    """Question on each example; empty texts where all are asked the same. None: examples have classes."""
    answers: tuple[tuple[str, ...], ...] | None = None
    """True answers to each question, at least one."""
    images: np.ndarray | None = None
    """[n] number of each example's image or sound, from 0 in the order of their first places, where several questions
    may share one: it is encoded once. None: each example has its own."""
    read: Reader
    """Returns examples by index."""
    fingerprint: str
    """SHA-256 that changes when an example does; the key of cached features."""

    def __len__(self) -> int:
        """Number of examples n."""
        return len(self.labels)

    def at(self, rows: np.ndarray, fingerprint: str) -> Split:
        """Return the examples of these rows alone, as a split of its own; each has an image of its own there."""
        return Split(
            labels=self.labels[rows],
            domains=self.domains[rows],
            clients=None if self.clients is None else self.clients[rows],
            groups=None if self.groups is None else self.groups[rows],
            questions=None if self.questions is None else tuple(self.questions[row] for row in rows.tolist()),
            answers=None if self.answers is None else tuple(self.answers[row] for row in rows.tolist()),
            read=functools.partial(_read_at, self.read, rows),
            fingerprint=fingerprint,
        )


def _read_at(read: Reader, rows: np.ndarray, indices: np.ndarray) -> list[np.ndarray]:
    """Read examples by their places among some rows."""
    return read(rows[indices])


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Examples of named classes, cut into train, validation and test.

    Raises:
        DataError: names repeat, or a label, domain, client or group has no name.
    """

    name: str
    class_names: tuple[str, ...]
    """Names in label order: an ordered list, never a set."""
    domain_names: tuple[str, ...]
    """Names in domain order; one name where there is one domain."""
    splits: Mapping[str, Split]
    """By name: "train" and "test", and "validation" where there is one."""
    citation: str
    license: str
    modality: Modality = "image"
    """Whether examples are images, sounds, or features."""
    sampling_rate: int | None = None
    """Samples per second of every waveform; None for images."""
    feature_dim: int | None = None
    """Width d of examples that are features; else None."""
    encoder: str = ""
    """Fingerprint of the backbone that made the features, where their file says so."""
    client_names: tuple[str, ...] = ()
    """Names in client order, where the data says who holds each example."""
    group_names: tuple[str, ...] = ()
    """Names in group order, where the data names groups and not only copies belong together. They are told to nobody
    but the owner of the data."""
    split_source: str = ""
    """Who says which example is in which split: a file, or a rule."""
    split_checksum: str = ""
    """SHA-256 of the sorted list of split, example and label; equal ones mean the same split, whatever the pixels."""
    num_skipped: int = 0
    """Examples left out because they cannot be read; only where the config asks for that."""
    findings: tuple[Finding, ...] = ()
    """What its reader noticed."""
    copies: tuple[Copies, ...] = ()
    """Groups of examples with equal bytes, where the reader looked for them: in data of a user's own."""
    duplicates: Duplicates = "allow"
    """Whether copies at two clients are refused."""

    @property
    def is_open(self) -> bool:
        """Whether examples have questions and answers; classes are then no more than categories of them."""
        return self.splits["train"].questions is not None

    def __post_init__(self) -> None:
        """Check labels and domains against their names."""
        every = {
            "class": self.class_names, "domain": self.domain_names, "client": self.client_names,
            "group": self.group_names,
        }  # fmt: skip
        for what, names in every.items():
            if len(set(names)) < len(names):
                repeated = sorted({name for name in names if names.count(name) > 1})
                raise DataError(f"Data set {self.name}: these {what} names occur twice: {repeated}. Give each its own.")
        if not {"train", "test"} <= set(self.splits):
            raise DataError(f"Data set {self.name} needs the splits train and test, got {sorted(self.splits)}.")
        for split_name, split in self.splits.items():
            for what, values, names in (
                ("label", split.labels, self.class_names),
                ("domain", split.domains, self.domain_names),
                ("client", split.clients, self.client_names),
                ("group", split.groups if self.group_names else None, self.group_names),
            ):
                if values is None:
                    continue
                if len(values) != len(split):
                    raise DataError(
                        f"Data set {self.name}, {split_name}: {len(values)} {what}s for {len(split)} examples."
                    )
                if len(values) and not 0 <= values.min() <= values.max() < len(names):
                    raise DataError(
                        f"Data set {self.name}, {split_name}: {what}s run from {values.min()} to {values.max()}, "
                        f"but there are {len(names)} {what} names."
                    )


@dataclass(frozen=True, kw_only=True)
class HeldByClients:
    """What every data set of this package lets a config say of its clients."""

    client_classes: tuple[tuple[Any, ...], ...] = ()
    """For each client in the partition's order, the classes (names, or labels from 0) of which alone it may have
    training examples: public from then on, whatever its data are. [] keeps a client's classes private; left out: what
    the partition's rule declares, if it does. Of an example of another class no class sum takes anything."""

    def class_sets(self, class_names: Sequence[str]) -> tuple[tuple[int, ...] | None, ...]:
        """Return each client's declared labels, sorted; None for one that keeps them private, () where nobody declares.

        Raises:
            ConfigError: a class is none of `class_names`.
        """
        labels = {nfc(name): label for label, name in enumerate(class_names)}

        def label_of(one: Any) -> int:
            found = labels.get(nfc(one)) if isinstance(one, str) else one
            if type(found) is not int or not 0 <= found < len(labels):
                raise ConfigError(
                    f"data.client_classes must name classes of the data, or their labels from 0 to {len(labels) - 1}, "
                    f"got {one!r}."
                )
            return found

        return tuple(tuple(sorted({*map(label_of, own)})) or None for own in self.client_classes)
