"""A Hugging Face `datasets` folder, as `save_to_disk` leaves it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hushprompt import extras
from hushprompt.data.base import Dataset
from hushprompt.data.decoding import Media
from hushprompt.data.listing import file_stamp
from hushprompt.data.readers.base import Found, OwnData, required, text_of
from hushprompt.errors import DataError
from hushprompt.registry import DATASETS

ROWS = 4096
"""Rows of an Arrow file that are looked at together."""


@dataclass(frozen=True)
class Rows:
    """Encoded examples of one column, over all splits one after the other; the Arrow files stay on disk."""

    parts: Mapping[str, Any]
    """`datasets.Dataset` of each split, whose column gives bytes and path."""
    column: str
    folder: Path
    starts: np.ndarray
    """First row of each part, and the number of all."""
    stamps: tuple[str, ...]
    """For each part, a hash of its files' names and stamps."""

    def describe(self, row: int) -> str:
        """Return folder, split and row."""
        part, inner = self._place(row)
        return f"{self.folder} {list(self.parts)[part]}[{inner}]"

    def stamp(self, row: int) -> str:
        """Return the part's stamp and the row, and the stamp of a file that the cell names."""
        part, inner = self._place(row)
        file = ""
        if self._sizes[row] < 0 and (cell := self._cell(row)) and cell["path"]:
            with self._naming(row):
                file = file_stamp(Path(cell["path"]).stat())
        return f"{self.stamps[part]} {inner} {file}"

    def fetch(self, row: int) -> bytes:
        """Read one cell, or the file it names."""
        cell = self._cell(row)
        if cell and cell["bytes"] is not None:
            return bytes(cell["bytes"])
        if cell and cell["path"]:
            with self._naming(row):
                return Path(cell["path"]).read_bytes()
        raise DataError(f"{self.describe(row)} is empty.")

    def size(self, row: int) -> int:
        """Return the bytes of a cell without reading it; a file that it names is read."""
        return int(self._sizes[row]) if self._sizes[row] >= 0 else len(self.fetch(row))

    def piece(self, row: int, start: int, length: int) -> bytes:
        """Read a part of a cell; of the Arrow file no more than that is read."""
        return bytes(self._buffer(row)[start : start + length])

    @functools.cached_property
    def _sizes(self) -> np.ndarray:
        """Bytes of every cell, of which Arrow files keep an index; -1 where a cell only names a file."""
        import pyarrow.compute

        sizes = [np.empty(0, dtype=np.int64)]
        for part in self.parts.values():
            arrow = part.with_format("arrow")
            for start in range(0, len(part), ROWS):
                cells = pyarrow.compute.struct_field(arrow[start : start + ROWS][self.column], "bytes")
                sizes.append(pyarrow.compute.binary_length(cells).fill_null(-1).to_numpy())
        return np.concatenate(sizes)

    def _buffer(self, row: int) -> memoryview:
        """Return a cell's bytes where they lie in the Arrow file; those of a file that it names are read."""
        part, inner = self._place(row)
        table = list(self.parts.values())[part].with_format("arrow")[inner : inner + 1]
        cell = table[self.column][0]["bytes"]
        return memoryview(cell.as_buffer() if cell.is_valid else self.fetch(row))

    def _cell(self, row: int) -> Any:
        """Return bytes and path of a row; None where it is empty."""
        part, inner = self._place(row)
        return list(self.parts.values())[part][inner][self.column]

    @contextlib.contextmanager
    def _naming(self, row: int) -> Iterator[None]:
        """Turn an OSError of a file that a cell names into a DataError."""
        try:
            yield
        except OSError as error:
            raise DataError(f"{self.describe(row)} names a file that cannot be read ({error}).") from error

    def _place(self, row: int) -> tuple[int, int]:
        """Return part and row within it."""
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        return part, row - int(self.starts[part])


@DATASETS.register("huggingface")
@dataclass(frozen=True, kw_only=True)
class HuggingFace(OwnData):
    """Your own images or sounds in a Hugging Face `datasets` folder (save_to_disk)."""

    root: str = ""
    """The folder."""
    column: str = ""
    """Column of the image or sound; empty: the only one of that type."""
    label_column: str = "label"
    """Column of the class: a ClassLabel, or texts or numbers."""
    client_column: str = ""
    """Column of the client that holds the example, for the partition by_client; empty: none."""
    domain_column: str = ""
    """Column of the domain, for the partition by_domain; empty: none."""
    group_column: str = ""
    """Column of whose example it is, such as a patient, for privacy.privacy_unit = "group"; empty: none."""

    def load(self) -> Dataset:
        """Open the folder; nothing is decoded yet."""
        required("a Hugging Face folder", root=self.root)
        datasets = extras.load("datasets", "huggingface", "A Hugging Face folder")
        root = Path(self.root).expanduser()
        try:
            loaded = datasets.load_from_disk(str(root))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{root} is not a folder that datasets' save_to_disk left ({error}).") from error
        parts = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
        if not parts:
            raise DataError(f"{root} has no splits.")
        first = next(iter(parts.values()))
        column, feature = self._column(datasets, first.features, root)
        found: list[Found] = []
        for split, part in parts.items():
            found += self._found(split if len(parts) > 1 else None, part, root)
        parts = {split: part.cast_column(column, type(feature)(decode=False)) for split, part in parts.items()}
        source = Rows(
            parts=parts,
            column=column,
            folder=root,
            starts=np.cumsum([0, *(len(part) for part in parts.values())]),
            stamps=tuple(_stamp(part) for part in parts.values()),
        )
        is_image = isinstance(feature, datasets.Image)
        media = Media() if is_image else Media(modality="audio", sampling_rate=self.sampling_rate)
        order = getattr(first.features[self.label_column], "names", ())
        return self.dataset("huggingface", root, found, source, media, order)

    def _column(self, datasets: Any, features: Mapping[str, Any], root: Path) -> tuple[str, Any]:
        """Return name and type of the column of images or sounds."""
        media = {name: kind for name, kind in features.items() if isinstance(kind, (datasets.Image, datasets.Audio))}
        name = self.column or (next(iter(media)) if len(media) == 1 else "")
        if name not in media:
            raise DataError(
                f"{root} has the columns {', '.join(features)}; of images or sounds: {', '.join(media) or 'none'}. "
                "Name one with data.column."
            )
        return name, media[name]

    def _found(self, split: str | None, part: Any, root: Path) -> list[Found]:
        columns: dict[str, list[str | None]] = {}
        fields = ("label_column", "domain_column", "client_column", "group_column")
        for field in fields:
            name = getattr(self, field)
            if name and name not in part.column_names:
                raise DataError(
                    f"{root} has no column {name!r}; it has {', '.join(part.column_names)}. Set data.{field}."
                )
            columns[field] = [None] * len(part)
            if name:
                is_class = field == "label_column"
                columns[field] = _texts(part, name, f"{root} {split or 'train'}", is_class=is_class)
        where = split or "train"
        return [
            Found(f"{where}[{row}]", label or "", split, domain, client, group)
            for row, (label, domain, client, group) in enumerate(zip(*map(columns.get, fields), strict=True))
        ]


def _texts(part: Any, name: str, where: str, *, is_class: bool) -> list[str | None]:
    """Return a column as texts, a ClassLabel as its names; None where it is empty or, as a ClassLabel, -1."""
    values = list(part.select_columns([name])[:][name])
    feature = part.features[name]
    if hasattr(feature, "int2str"):
        return [None if value is None or value < 0 else feature.int2str(value) for value in values]
    return [text_of(value, f"{where}[{row}]", name, is_class=is_class) or None for row, value in enumerate(values)]


def _stamp(part: Any) -> str:
    """Hash the names and stamps of a part's files."""
    digest = hashlib.sha256()
    for entry in part.cache_files:
        path = Path(entry["filename"])
        digest.update(f"{path.name} {file_stamp(path.stat())}\n".encode())
    return digest.hexdigest()
