"""A Hugging Face `datasets` folder, as `save_to_disk` leaves it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hushprompt.data.base import Dataset
from hushprompt.data.decoding import Media
from hushprompt.data.readers.base import Found, OwnData, required
from hushprompt.errors import ConfigError, DataError
from hushprompt.extras import install_hint
from hushprompt.registry import DATASETS


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
    """For each part, a hash of its files' names, sizes and times."""

    def describe(self, row: int) -> str:
        """Return folder, split and row."""
        part, inner = self._place(row)
        return f"{self.folder} {list(self.parts)[part]}[{inner}]"

    def stamp(self, row: int) -> str:
        """Return the part's stamp and the row."""
        part, inner = self._place(row)
        return f"{self.stamps[part]} {inner}"

    def fetch(self, row: int) -> bytes:
        """Read one cell, or the file it names."""
        part, inner = self._place(row)
        cell = list(self.parts.values())[part][inner][self.column]
        if cell and cell["bytes"] is not None:
            return bytes(cell["bytes"])
        if cell and cell["path"]:
            try:
                return Path(cell["path"]).read_bytes()
            except OSError as error:
                raise DataError(f"{self.describe(row)} names a file that cannot be read ({error}).") from error
        raise DataError(f"{self.describe(row)} is empty.")

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

    def load(self) -> Dataset:
        """Open the folder; nothing is decoded yet."""
        required("a Hugging Face folder", root=self.root)
        datasets = _datasets()
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
        """Name the examples of one split."""
        columns = {}
        for field in ("label_column", "client_column", "domain_column"):
            name = getattr(self, field)
            if name and name not in part.column_names:
                raise DataError(
                    f"{root} has no column {name!r}; it has {', '.join(part.column_names)}. Set data.{field}."
                )
            columns[field] = _texts(part, name) if name else [None] * len(part)
        where = split or "train"
        return [
            Found(f"{where}[{row}]", label or "", split, domain, client)
            for row, (label, domain, client) in enumerate(
                zip(columns["label_column"], columns["domain_column"], columns["client_column"], strict=True)
            )
        ]


def _texts(part: Any, name: str) -> list[str | None]:
    """Return a column as texts, a ClassLabel as its names; None where it is empty or, as a ClassLabel, -1."""
    values = list(part.select_columns([name])[:][name])
    feature = part.features[name]
    if hasattr(feature, "int2str"):
        return [None if value is None or value < 0 else feature.int2str(value) for value in values]
    return [None if value is None else str(value) for value in values]


def _stamp(part: Any) -> str:
    """Hash the names, sizes and times of a part's files."""
    digest = hashlib.sha256()
    for entry in part.cache_files:
        path = Path(entry["filename"])
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _datasets() -> Any:
    """Return the package `datasets`."""
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"A Hugging Face folder needs datasets ({error}). Get it with: {install_hint('huggingface')}"
        ) from error
    return datasets
