"""A CSV or JSONL file with one line for each example: path, label, and, if you like, client, split and domain."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hushprompt.data.base import Dataset
from hushprompt.data.decoding import media_of
from hushprompt.data.listing import Files
from hushprompt.data.readers.base import Found, OwnData, required
from hushprompt.errors import DataError
from hushprompt.registry import DATASETS

OPTIONAL = {"client_column": "client", "split_column": "split", "domain_column": "domain"}
"""Columns that are used where the file has them; another name than this default must be there."""


@DATASETS.register("table")
@dataclass(frozen=True, kw_only=True)
class Table(OwnData):
    """Your own images or sounds, listed in a CSV or JSONL file, which may also say who holds them."""

    file: str = ""
    """The table: .csv with a header, or .jsonl with one object a line."""
    root: str = ""
    """Folder that relative paths start from; empty: the table's own."""
    path_column: str = "path"
    """Column of the file's path."""
    label_column: str = "label"
    """Column of the class."""
    client_column: str = "client"
    """Column of the client that holds the example, for the partition by_client."""
    split_column: str = "split"
    """Column of train, validation or test; a table without it is split by the fractions."""
    domain_column: str = "domain"
    """Column of the domain (site, vendor, style), for the partition by_domain."""

    def load(self) -> Dataset:
        """Read the table; no example is decoded yet."""
        required("a table", file=self.file)
        path = Path(self.file).expanduser()
        root = Path(self.root).expanduser() if self.root else path.parent
        found = [self._found(row, f"{path}, line {line}") for line, row in _rows(path)]
        names = [one.name for one in found]
        return self.dataset("table", path, found, Files(root, names), media_of(names, self.sampling_rate, str(path)))

    def _found(self, row: Mapping[str, Any], where: str) -> Found:
        """Read one row."""
        values = {}
        for field, default in {"path_column": "path", "label_column": "label", **OPTIONAL}.items():
            column = getattr(self, field)
            value = row.get(column)
            text = "" if value is None else str(value).strip()
            if not text and (field not in OPTIONAL or (column and column != default)):
                raise DataError(
                    f"{where}: there is no {column!r}. It has: {', '.join(map(str, row)) or 'nothing'}. Fill it in, or "
                    f"name another column with data.{field}."
                )
            values[field] = text
        return Found(
            values["path_column"],
            values["label_column"],
            values["split_column"] or None,
            values["domain_column"] or None,
            values["client_column"] or None,
        )


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Return the rows of a table with their line numbers."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            if path.suffix.lower() == ".csv":
                reader = csv.DictReader(file)
                for row in reader:
                    yield reader.line_num, row
            elif path.suffix.lower() == ".jsonl":
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        row = json.loads(line)
                        if not isinstance(row, dict):
                            raise DataError(f"{path}, line {number} is not a JSON object.")
                        yield number, row
            else:
                raise DataError(f"The table {path} must end in .csv or .jsonl.")
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"The table {path} cannot be read ({error}). Check data.file.") from error
