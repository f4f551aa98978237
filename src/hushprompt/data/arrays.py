"""Named arrays in files that users bring: npz, npy, safetensors and parquet. Nothing is unpickled."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from hushprompt.errors import DataError, HushpromptError
from hushprompt.extras import require

DAMAGED = (
    OSError, ValueError, EOFError, KeyError, TypeError, NotImplementedError, zipfile.BadZipFile, zlib.error,
    SafetensorError,
)  # fmt: skip
"""What readers raise for files that are missing, damaged, or hold something else than numbers and text."""


@dataclass(frozen=True)
class Arrays:
    """The arrays of one file or folder, each read when it is asked for."""

    path: Path
    names: tuple[str, ...]
    load: Callable[[str], np.ndarray]
    own: str = ""
    """Of a single .npy file, its name without the ending: the array that the path itself stands for."""

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> np.ndarray:
        """Read an array; DataError if it is damaged or holds Python objects."""
        return _reading(self.path, lambda: self.load(name), name)

    def text(self, name: str) -> str:
        """Return a value of one entry as text; empty where there is none."""
        return str(self[name].reshape(-1)[0]) if name in self and self[name].size == 1 else ""

    def words(self, name: str) -> tuple[str, ...]:
        """Return a list of words; DataError if it is something else; none where there is no such array."""
        if name not in self:
            return ()
        found = self[name].tolist()
        if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
            raise DataError(f"{self.path}: {name} must be a list of texts, such as np.array(names, dtype=str).")
        return tuple(found)

    def known(self) -> str:
        """Return the names of all arrays, for an error message."""
        return ", ".join(self.names) or "nothing"


def read_arrays(path: Path) -> Arrays:
    """Open a file of arrays, or a folder of .npy files.

    Args:
        path: .npz; .safetensors, whose metadata may hold lists of texts as JSON; .parquet, whose columns are arrays; a
            folder of .npy files; or one .npy file, beside which the other arrays lie in files named after them. npy
            files are memory-mapped.

    Raises:
        DataError: it is missing, damaged, or of another kind.
        ConfigError: it is a parquet file, and pyarrow is missing.
    """
    readers = {".npz": _npz, ".npy": _npy, ".safetensors": _safetensors, ".parquet": _parquet}
    ending = ".npy" if path.is_dir() else path.suffix.lower()
    if ending not in readers:
        raise DataError(f"{path} must end in {', '.join(readers)}, or be a folder of .npy files.")
    return _reading(path, lambda: readers[ending](path))


def matrix(arrays: Arrays, name: str) -> np.ndarray:
    """Return an array of vectors [n, d] of floats; DataError if it is something else."""
    found = arrays[name]
    if found.ndim != 2 or found.dtype.kind != "f" or found.dtype.itemsize > 8 or 0 in found.shape:
        raise DataError(
            f"{arrays.path}: {name} must be float16, float32 or float64 numbers of shape [n, d], one row an example, "
            f"got {found.dtype} of shape {list(found.shape)}."
        )
    return found


def usable(rows: np.ndarray) -> np.ndarray:
    """Return which vectors [n, d] have a direction in float32 [n]: finite, and not all zero."""
    with np.errstate(over="ignore", under="ignore"):
        values = rows.astype(np.float32)
    return np.asarray(np.isfinite(values).all(axis=1) & values.any(axis=1))


def _reading(path: Path, read: Callable[[], Any], name: str = "") -> Any:
    """Read something, and turn what a reader raises into an error that says what to do."""
    try:
        return read()
    except HushpromptError:
        raise
    except DAMAGED as error:
        what = f"{name} of {path}" if name else str(path)
        hint = "Check the path, or make the file again."
        if "allow_pickle" in str(error) or "Python objects" in str(error):
            hint = "Python objects are not read: save names as text, such as np.array(names, dtype=str)."
        said = str(error).rstrip(".") or type(error).__name__
        raise DataError(f"{what} cannot be read ({said}). {hint}") from error


def _npz(path: Path) -> Arrays:
    """Open an archive of numpy."""

    def load(name: str) -> np.ndarray:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return np.asarray(archive[name])

    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return Arrays(path, tuple(archive.files), load)


def _npy(path: Path) -> Arrays:
    """Open a folder of arrays, or one of them."""
    folder = path if path.is_dir() else path.parent
    names = tuple(sorted(file.stem for file in folder.glob("*.npy")))
    if not path.exists():
        raise FileNotFoundError("there is no such file")
    own = "" if path.is_dir() else path.stem
    return Arrays(path, names, lambda name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="r"), own)


def _safetensors(path: Path) -> Arrays:
    """Open a safetensors file; lists and texts stand in its metadata."""

    def load(name: str) -> np.ndarray:
        with safe_open(path, "np") as file:
            return np.asarray(said[name] if name in said else file.get_tensor(name))

    with safe_open(path, "np") as file:
        said = _said(file.metadata() or {})
        return Arrays(path, (*file.keys(), *said), load)


def _parquet(path: Path) -> Arrays:
    """Open a parquet file: a column is an array, a column of lists one of vectors; texts stand in its metadata too."""
    require("parquet", "A parquet file", "pyarrow")
    import pyarrow.parquet as parquet

    schema = parquet.read_schema(path)
    said = _said({key.decode(): value.decode() for key, value in (schema.metadata or {}).items()})

    def load(name: str) -> np.ndarray:
        if name not in schema.names:
            return np.asarray(said[name])
        column = parquet.read_table(path, columns=[name], memory_map=True)[name]
        if "list<" in str(column.type):
            return _vectors(column, name)
        # Texts as objects: one long text would widen all.
        return np.array(column.to_pylist(), dtype=object if "string" in str(column.type) else None)

    return Arrays(path, (*schema.names, *(name for name in said if name not in schema.names)), load)


def _vectors(column: Any, name: str) -> np.ndarray:
    """Return a column of lists as [n, d]; ValueError if they differ in length."""
    import pyarrow.compute as compute

    lengths = compute.list_value_length(column).fill_null(0).to_numpy()
    if (other := np.flatnonzero(lengths != lengths[:1])).size:
        raise ValueError(f"row {other[0]} has {lengths[other[0]]} numbers in {name}, row 0 has {lengths[0]}")
    flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate(flat or [np.zeros(0, np.float32)]).reshape(len(lengths), lengths.max(initial=0))


def _said(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return what metadata say: texts, and lists that stand there as JSON."""
    return {key: json.loads(value) if value.startswith("[") else value for key, value in metadata.items()}
