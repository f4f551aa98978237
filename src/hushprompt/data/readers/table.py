r"""A CSV or JSONL file with one line for each example: path, label, and, if you like, client, split, domain and group.

Nothing is guessed: a row with another number of fields than the header, a name that stands twice, and a label that is
neither text nor a whole number are errors with their line. Spreadsheets write semicolons or tabs for commas, a mark in
front and "\r\n"; all that is read.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hushprompt.data.base import Dataset
from hushprompt.data.decoding import media_of
from hushprompt.data.listing import Files
from hushprompt.data.readers.base import OPTIONAL, Found, OwnData, once, required, text_of
from hushprompt.errors import DataError
from hushprompt.registry import DATASETS
from hushprompt.user_text import nfc, read_text


@DATASETS.register("table")
@dataclass(frozen=True, kw_only=True)
class Table(OwnData):
    """Your own images or sounds, listed in a CSV or JSONL file, which may also say who holds them."""

    file: str = ""
    """The table: .csv (or .tsv) with a header, or .jsonl with one object a line."""
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
    group_column: str = "group"
    """Column of whose example it is (patient, customer, document), for privacy.privacy_unit = "group"; a split by the
    fractions keeps each group together."""

    def load(self) -> Dataset:
        """Read the table; no example is decoded yet."""
        required("a table", file=self.file)
        path = Path(self.file).expanduser()
        root = Path(self.root).expanduser() if self.root else path.parent
        found = [self._found(row, root, f"{path}, line {line}") for line, row in _rows(path, self.path_column)]
        names = [one.name for one in found]
        return self.dataset("table", path, found, Files(root, names), media_of(names, self.sampling_rate, str(path)))

    def _found(self, row: Mapping[str, Any], root: Path, where: str) -> Found:
        values = {}
        for field, default in {"path_column": "path", "label_column": "label", **OPTIONAL}.items():
            column = getattr(self, field)
            value = row.get(column)
            text = (
                (value or "")
                if field == "path_column"
                else text_of(value, where, column, is_class=field == "label_column")
            )
            if not isinstance(text, str) or "\0" in text:
                raise DataError(f"{where}: the path {text!r} is no text. Write the path of a file.")
            if not text and (field not in OPTIONAL or (column and column != default)):
                raise DataError(
                    f"{where}: there is no {column!r}. It has: {', '.join(map(str, row)) or 'nothing'}. Fill it in, or "
                    f"name another column with data.{field}."
                )
            values[field] = text
        return Found(
            as_path(values["path_column"].strip(), root),
            values["label_column"],
            values["split_column"] or None,
            values["domain_column"] or None,
            values["client_column"] or None,
            values["group_column"] or None,
        )


def as_path(name: str, root: Path) -> str:
    """Return a path of a table; backslashes become slashes where no file has them in its name."""
    return name.replace("\\", "/") if "\\" in name and not (root / name).exists() else name


def _rows(path: Path, path_column: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Return the rows of a table with their line numbers.

    Raises:
        DataError: the file cannot be read, is no table, or has a row that does not fit.
    """
    readers = {".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": json_rows}
    if path.suffix.lower() not in readers:
        raise DataError(f"The table {path} must end in .csv or .jsonl.")
    try:
        yield from readers[path.suffix.lower()](read_text(path), path, path_column)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"The table {path} cannot be read ({error}). Check data.file.") from error


def _csv_rows(text: str, path: Path, path_column: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Return the rows of a table with a header, whose fields are separated by commas, semicolons or tabs."""
    lines = [f"{line}\n" for line in text.split("\n")]
    before = 1 if lines[0].lower().startswith("sep=") else 0  # how spreadsheets say it
    separators = lines[0][4:5] if before else ",;\t"
    headers = [_names(next(csv.reader(lines[before:], delimiter=mark), [])) for mark in separators]
    fitting = [index for index, names in enumerate(headers) if path_column in names]
    chosen = fitting[0] if fitting else 0
    names = headers[chosen]
    repeated = [name for name, count in Counter(names).items() if count > 1 and name]
    if repeated:
        raise DataError(
            f"{path}, line {before + 1}: the header names {', '.join(repeated)} twice. Name each column once."
        )
    reader = csv.reader(lines[before:], delimiter=separators[chosen], strict=True)
    next(reader, None)
    for fields in _whole(reader, path, before):
        where = reader.line_num + before
        if not any(field.strip() for field in fields):
            continue
        if len(fields) < len(names) or any(field.strip() for field in fields[len(names) :]):
            raise DataError(
                f"{path}, line {where}: the row has {len(fields)} fields, the header {len(names)}: "
                f"{separators[chosen].join(fields)!r}. Put a text that has the separator in it between double quotes."
            )
        yield where, dict(zip(names, fields, strict=False))


def _whole(reader: Any, path: Path, before: int) -> Iterator[list[str]]:
    """Return the rows of a CSV reader, or say in which line a quote is not closed or closed too early."""
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num + before}: {error}. Check the double quotes up to it."
        ) from error


def _names(header: Sequence[str]) -> list[str]:
    """Return the names of columns without spaces around them, and without the empty ones at the end."""
    names = [nfc(name.strip()) for name in header]
    while names and not names[-1]:
        names.pop()
    return names


def json_rows(text: str, path: Path, path_column: str = "") -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Return the objects of a file with one a line."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=once)
        except (ValueError, RecursionError) as error:
            raise DataError(f"The table {path}, line {number} cannot be read ({error}). Check data.file.") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number} is not a JSON object.")
        yield number, row
