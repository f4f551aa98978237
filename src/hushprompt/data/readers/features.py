"""Embeddings that somebody made already, with labels: the examples are vectors, and no image is read.

A file holds arrays of one length: `features` [n, d], `labels` [n], and, where there are, `client`, `group`, `split` and
`domain` [n], `class_names` [c] in label order, and `fingerprint`, that of the backbone. Or it holds one pair of arrays
for each split, such as `train_features` and `train_labels`. `hushprompt features export` writes such a file from
images.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hushprompt.data.arrays import Arrays, matrix, read_arrays, usable
from hushprompt.data.base import Dataset
from hushprompt.data.decoding import Vectors
from hushprompt.data.readers.base import OPTIONAL, Found, OwnData, required, text_of
from hushprompt.errors import ConfigError, DataError
from hushprompt.registry import DATASETS

PREFIXES = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}
"""How the arrays of each split begin, where they are apart."""
AT_ONCE = 4096
"""Vectors that are looked at together."""


@dataclass(frozen=True)
class Embeddings:
    """Vectors that are handed out one by one, as float32; memory-mapped where their file is."""

    file: str
    names: Sequence[str] = field(repr=False)
    """Of the rows, such as "row 17"."""
    parts: tuple[np.ndarray, ...] = field(repr=False)
    """[n_i, d] each: the rows of the first come first."""

    def describe(self, row: int) -> str:
        """Return the file and the row."""
        return f"{self.file}, {self.names[row]}"

    def stamp(self, row: int) -> str:
        """Return a hash of the vector: where it lies, and in which precision, does not matter."""
        return hashlib.blake2b(self.fetch(row), digest_size=16).hexdigest()

    def size(self, row: int) -> int:
        """Return the bytes of a vector."""
        return 4 * self.parts[0].shape[1]

    def fetch(self, row: int) -> bytes:
        """Return a vector's bytes."""
        for part in self.parts:
            if row < len(part):
                with np.errstate(over="ignore", under="ignore"):
                    return part[row].astype("<f4").tobytes()
            row -= len(part)
        raise IndexError(row)

    def piece(self, row: int, start: int, length: int) -> bytes:
        """Return some of a vector's bytes."""
        return self.fetch(row)[start : start + length]


class Part(NamedTuple):
    """Some of the rows."""

    arrays: Arrays
    prefix: str
    """What the names of its arrays begin with."""
    split: str
    """Of all of its rows; empty: a column says it, or nobody."""
    title: str
    """What its rows are called in messages."""


@DATASETS.register("features")
@dataclass(frozen=True, kw_only=True)
class FeatureFile(OwnData):
    """Your own embeddings with labels, as npz, npy, safetensors or parquet; for `backbone.name = "features"`."""

    file: str = ""
    """The embeddings and their labels: .npz, .safetensors, .parquet, a folder of .npy files, or an .npy file of
    embeddings, beside which the other arrays lie."""
    validation_file: str = ""
    """File of the validation examples, where `test_file` is given; may be empty."""
    test_file: str = ""
    """File of the test examples, where they are apart; `file` then has the training examples."""
    features_column: str = "features"
    """Array of the embeddings [n, d]: float16, float32 or float64."""
    label_column: str = "labels"
    """Array of the classes [n]: names, or whole numbers from 0 in the order of the class names."""
    client_column: str = "client"
    """Array of the client that holds each example [n], for the partition by_client."""
    split_column: str = "split"
    """Array of train, validation or test [n]; a file without it is split by the fractions."""
    domain_column: str = "domain"
    """Array of the domain (site, vendor, style) of each example [n], for the partition by_domain."""
    group_column: str = "group"
    """Array of whose example it is [n] (patient, customer, document), for privacy.privacy_unit = "group"."""
    train: tuple[str, ...] = PREFIXES["train"]
    """Where the splits are arrays of their own: how the names of the training arrays begin, as in train_features and
    train_labels; several are put together."""
    validation: tuple[str, ...] = PREFIXES["validation"]
    """The same for validation."""
    test: tuple[str, ...] = PREFIXES["test"]
    """The same for test."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validation_file and not self.test_file:
            raise ConfigError("data.validation_file needs data.test_file, the file of the test examples.")

    def load(self) -> Dataset:
        """Read labels, and look through the embeddings.

        Raises:
            DataError: an array is missing, or of another length, shape or type; an embedding is NaN, infinite or zero.
        """
        required("a file of embeddings", file=self.file)
        parts = self._parts()
        first = parts[0].arrays
        vectors = tuple(matrix(part.arrays, self._named(part, "features_column")) for part in parts)
        found = [one for part, each in zip(parts, vectors, strict=True) for one in self._found(part, len(each))]
        if len(widths := sorted({each.shape[1] for each in vectors})) > 1:
            raise DataError(f"Embeddings of {first.path} have different widths: {', '.join(map(str, widths))}.")
        order = _agreed(parts)
        source = Embeddings(str(first.path), [one.name for one in found], vectors)
        if self.on_unreadable == "error":
            check_vectors(source)
        dataset = self.dataset("features", first.path, found, source, Vectors(), order)
        return dataclasses.replace(dataset, feature_dim=widths[0], encoder=first.text("fingerprint"))

    def _parts(self) -> list[Part]:
        """Return where the rows are."""
        arrays = read_arrays(Path(self.file).expanduser())
        if self.test_file:
            files = {"validation": self.validation_file, "test": self.test_file}
            opened = {split: read_arrays(Path(file).expanduser()) for split, file in files.items() if file}
            return [Part(each, "", split, f"{split} row") for split, each in ({"train": arrays} | opened).items()]
        if arrays.own or self.features_column in arrays:
            return [Part(arrays, "", "", "row")]
        parts = list(self._by_split(arrays))
        if not {"train", "test"} <= {part.split for part in parts}:
            raise DataError(
                f"{arrays.path} has no array {self.features_column!r}, nor {self.train[0]}_{self.features_column} and "
                f"{self.test[0]}_{self.features_column}. It has: {arrays.known()}. Name yours with "
                "data.features_column, or with data.train and data.test."
            )
        return parts

    def _by_split(self, arrays: Arrays) -> Iterator[Part]:
        """Yield the parts of a file that has arrays for each split."""
        used: set[str] = set()
        for split, usual in PREFIXES.items():
            wanted: tuple[str, ...] = getattr(self, split)
            for prefix in wanted:
                if prefix in used and wanted == usual:  # somebody trains on the validation arrays
                    continue
                used.add(prefix)
                if f"{prefix}_{self.features_column}" in arrays:
                    yield Part(arrays, f"{prefix}_", split, f"{prefix} row")
                elif wanted != usual:
                    raise DataError(
                        f"{arrays.path} has no array {prefix}_{self.features_column}. It has: {arrays.known()}. "
                        f"Check data.{split}."
                    )

    def _named(self, part: Part, setting: str) -> str:
        """Return the name of an array of a part."""
        if setting == "features_column" and part.arrays.own:
            return part.arrays.own
        return part.prefix + str(getattr(self, setting))

    def _found(self, part: Part, count: int) -> list[Found]:
        """Return what a part says of its rows."""
        labels = self._labels(part)
        clients, splits, domains, groups = (
            names_of(self._column(part, setting), f"{part.arrays.path}", self._named(part, setting))
            for setting in OPTIONAL
        )
        for column in (labels, clients, splits, domains, groups):
            if column and len(column) != count:
                raise DataError(
                    f"{part.arrays.path}: {count} embeddings in {self._named(part, 'features_column')}, but an array "
                    f"beside it has {len(column)} entries. Give every embedding one."
                )
        return [
            Found(
                f"{part.title} {row}",
                label,
                part.split or (splits[row] if splits else None),
                domains[row] if domains else None,
                clients[row] if clients else None,
                groups[row] if groups else None,
            )
            for row, label in enumerate(labels)
        ]

    def _labels(self, part: Part) -> list[str]:
        """Return the class of each row.

        Numbers count in the file's own class names, whatever order a config or federation wants the classes in.

        Raises:
            DataError: a number has no name.
        """
        values, where = self._column(part, "label_column"), part.arrays.path
        labels = names_of(values, f"{where}", self._named(part, "label_column"), is_class=True)
        names = part.arrays.words("class_names")
        is_named = values.dtype.kind not in "iuf" and set(labels) <= set(names)
        if not names or is_named or not all(label.isdecimal() for label in labels):
            return labels
        largest = max(labels, key=lambda label: (len(label), label))
        if len(largest) > 9 or int(largest) >= len(names):
            raise DataError(
                f"{where}: a label is {largest[:12]}, but there are {len(names)} class_names, so labels run from 0 to "
                f"{len(names) - 1}. Name every class."
            )
        return [names[int(label)] for label in labels]

    def _column(self, part: Part, setting: str) -> np.ndarray:
        """Return an array; an empty one where it may be missing and is."""
        name = self._named(part, setting)
        if name in part.arrays:
            return part.arrays[name]
        if setting in OPTIONAL and getattr(self, setting) in (OPTIONAL[setting], ""):
            return np.zeros(0)
        raise DataError(
            f"{part.arrays.path} has no array {name!r}. It has: {part.arrays.known()}. Name yours with data.{setting}."
        )


def names_of(values: np.ndarray, where: str, what: str, *, is_class: bool = False) -> list[str]:
    """Return the entries of an array as names; DataError for one that is none, or a class below 0."""
    if values.ndim != 1:
        raise DataError(f"{where}: {what} must have one entry an example, got the shape {list(values.shape)}.")
    known: dict[object, str] = {}
    for row, value in enumerate(values.tolist()):
        if value in known:
            continue
        text = value.decode(errors="replace") if isinstance(value, bytes) else value
        known[value] = text_of(text, f"{where}, row {row}", what, is_class=is_class)
        if is_class and isinstance(value, (int, float)) and value < 0:
            raise DataError(f"{where}, row {row}: {what} is {value}, which is no class. Take rows without one out.")
    return [known[value] for value in values.tolist()]


def check_vectors(source: Embeddings) -> None:
    """Raise DataError, naming the first, for vectors that are NaN, infinite or all zero."""
    start = 0
    for part in source.parts:
        for first in range(0, len(part), AT_ONCE):
            wrong = np.flatnonzero(~usable(part[first : first + AT_ONCE]))
            if wrong.size:
                row = start + first + int(wrong[0])
                Vectors().decode(source.fetch(row), source.describe(row))
        start += len(part)


def _agreed(parts: Sequence[Part]) -> tuple[str, ...]:
    """Return the class names of all files; DataError if two differ, or the files are of different backbones."""
    for what, found in (
        ("class names", {part.arrays.words("class_names") for part in parts} - {()}),
        ("backbones", {part.arrays.text("fingerprint") for part in parts} - {""}),
    ):
        if len(found) > 1:
            raise DataError(f"The files of {parts[0].arrays.path} have different {what}. Make them alike.")
    return parts[0].arrays.words("class_names")
