"""The features of one split on disk: a folder that is whole, or knows how far it is.

    features.npy    the array, little-endian; numpy alone can read it
    chunks.jsonl    what the array holds, then one line with a checksum for every chunk that is on the disk
    metadata.json   the same, for a reader, and the packages that made it; written last: its presence says "complete"
    lock            held by the process that writes

A chunk is what one call of the backbone gave. Its bytes reach the disk before its line in `chunks.jsonl` does, so after
a kill or a power cut the lines name exactly the chunks that need not be encoded again. Checksums are CRC-32: they find
accidents (flipped bits, cut files), at several GB a second; they are no protection from someone who means harm.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import math
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt import files
from hushprompt.errors import DataError

try:
    import fcntl
except ImportError:  # pragma: no cover - not on Windows; there two processes may encode the same images
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)
ARRAY, CHUNKS, METADATA, LOCK = "features.npy", "chunks.jsonl", "metadata.json", "lock"
HEADER_SIZE = 128
"""Bytes before the first row, a multiple of 64 so that rows are aligned."""
POLL_SECONDS = 0.2
"""Between two looks at a lock that another process holds."""
Precision = Literal["float32", "float16"]
"""How features are stored; they are always handed out as float32."""


@dataclass(frozen=True, kw_only=True)
class FeatureKey:
    """Everything that decides the features of a split: equal keys, equal features."""

    dataset: str
    split: str
    data: str
    """Fingerprint of the examples."""
    backbone: str
    """Fingerprint of weights, tokenizer and preprocessing."""
    num_examples: int
    num_views: int
    feature_dim: int
    dtype: Precision
    chunk_size: int
    """Examples in a chunk; the last one may be smaller. Decides the last bits of the features."""
    min_scale: float | None
    """Smallest share of an image that a view shows; None without augmentation, as the two below."""
    view_seed: int | None
    view_size: int | None
    """Side of a view in pixels; None too where a view is as large as the short side of its image."""
    num_patches: int | None = None
    """Patches m of each image; None for the pooled feature."""
    num_tokens: int | None = None
    """Tokens m of each image or sound that a generative model reads; `feature_dim` is their width."""
    format: int = 1
    """Version of the files' layout."""

    @property
    def num_chunks(self) -> int:
        """Number of chunks."""
        return -(-self.num_examples // self.chunk_size)

    def to_json(self) -> dict[str, Any]:
        """Return the key as plain values; what there was not always is there only where it says something."""
        values = dataclasses.asdict(self)
        if self.num_examples % self.chunk_size:
            values["last_chunk"] = "filled up"  # it was not in version 0.1
        later = ("num_patches", "num_tokens")
        return {name: value for name, value in values.items() if name not in later or value is not None}

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of the features of one view of an example: [d], or [m, d]."""
        num_rows = self.num_patches or self.num_tokens
        return (self.feature_dim,) if num_rows is None else (num_rows, self.feature_dim)

    @property
    def num_bytes(self) -> int:
        """Size of the array's values on the disk."""
        return self.num_examples * self.bytes_per_example

    @property
    def bytes_per_example(self) -> int:
        """Size on the disk of what is kept of one example, all its views."""
        return self.num_views * math.prod(self.row_shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class StoredFeatures:
    """Features of one split, left on the disk: only rows that are asked for come into memory."""

    array: Float[np.ndarray, "n k *m d"]
    """[n, k, d] k views of each example, or [n, k, m, d] with m patches each; memory-mapped, float32 or float16."""
    checksum: str = ""
    """SHA-256 of the checksums of all chunks."""
    places: Int[np.ndarray, " e"] | None = None
    """Row of each of e examples, where several share one; None: example i has row i."""

    def __len__(self) -> int:
        """Number of examples n."""
        return len(self.array if self.places is None else self.places)

    @property
    def num_views(self) -> int:
        """Views k of each example."""
        return self.array.shape[1]

    def rows(self, indices: Int[np.ndarray, " b"], views: Int[np.ndarray, " b"]) -> Float[Tensor, "b *m d"]:
        """Copy one view of each of some examples into memory, as float32."""
        rows = indices if self.places is None else self.places[indices]
        return torch.from_numpy(np.asarray(self.array[rows, views])).float()

    def tensor(self) -> Float[Tensor, "n *m d"]:
        """Return the first view of all examples as float32: a view of the file, or a copy if it is float16."""
        return self.as_stored().float()

    def as_stored(self) -> Float[Tensor, "n *m d"]:
        """Return the first view of all examples in the file's numbers, for what is read part by part.

        It is a view of the file, or a copy where several examples share a row.
        """
        first = self.array[:, 0]
        return torch.from_numpy(np.asarray(first if self.places is None else first[self.places]))


class FeatureFolder:
    """Writes and reads the folder of one key.

    Raises:
        DataError: by every method that writes, if the disk is full or the folder cannot be written.
    """

    def __init__(self, path: Path, key: FeatureKey) -> None:
        """Name the folder; nothing is read or made yet."""
        self.path, self.key = path, key
        self._dtype = np.dtype(key.dtype).newbyteorder("<")
        self._row_bytes = key.num_views * math.prod(key.row_shape) * self._dtype.itemsize
        self._size = HEADER_SIZE + key.num_bytes
        self._header = self._npy_header()

    def rows(self, chunk: int) -> Int[np.ndarray, " b"]:
        """Return the examples of a chunk."""
        start = chunk * self.key.chunk_size
        return np.arange(start, min(start + self.key.chunk_size, self.key.num_examples))

    def is_ready(self) -> bool:
        """Whether the folder is complete, of this key and undamaged; reads the whole array once to know."""
        if not self.is_marked() or not self._has_header():
            return False
        _, checksums = self._log()
        return len(self._sound(checksums)) == self.key.num_chunks

    def is_marked(self) -> bool:
        """Whether the folder says that it is complete and of this key; cheap, and blind to damage."""
        metadata = _read_json(self.path / METADATA)
        return metadata is not None and metadata.get("key") == self.key.to_json()

    def num_logged(self) -> int:
        """Number of examples that are on the disk, by the log alone: cheap, for a progress bar."""
        try:
            num_chunks = (self.path / CHUNKS).read_bytes().count(b"\n") - 1
        except OSError:
            return 0
        return min(max(num_chunks, 0) * self.key.chunk_size, self.key.num_examples)

    @contextlib.contextmanager
    def locked(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold the folder for one process; the lock goes when the process does, however it ends.

        Args:
            on_wait: called again and again while another process has the lock.
        """
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            while not self._try_lock(handle):
                on_wait()
                time.sleep(POLL_SECONDS)
            yield
        finally:
            os.close(handle)

    def prepare(self) -> list[int]:
        """Keep what is sound of the folder, and give the chunks that must be stored before `finish`. Needs the lock."""
        is_ours, checksums = self._log()
        sound = self._sound(checksums) if is_ours else set()
        missing = [chunk for chunk in range(self.key.num_chunks) if chunk not in sound]
        if not is_ours and ((self.path / CHUNKS).exists() or (self.path / ARRAY).exists()):
            logger.warning("Cached features in %s are of something else or damaged, and are made again.", self.path)
        elif len(sound) < len(checksums) or (self.path / METADATA).exists():
            logger.warning(
                "Cached features in %s are damaged; %d of %d chunks are made again.",
                self.path,
                len(missing),
                self.key.num_chunks,
            )
        with self._writing():
            (self.path / METADATA).unlink(missing_ok=True)
            if not is_ours:  # a new file rather than an emptied one: another process may have mapped the old one
                (self.path / ARRAY).unlink(missing_ok=True)
            lines = [self.key.to_json(), *({"chunk": chunk, "crc32": checksums[chunk]} for chunk in sorted(sound))]
            files.write_text(self.path / CHUNKS, "".join(json.dumps(line) + "\n" for line in lines))
            self._write(0, self._header)
            self._check_space()
        return missing

    def store(self, chunk: int, features: Float[np.ndarray, "b k *m d"]) -> None:
        """Put a chunk on the disk, then its line into the log. Needs the lock."""
        data = features.astype(self._dtype).tobytes()
        line = json.dumps({"chunk": chunk, "crc32": zlib.crc32(data)}) + "\n"
        with self._writing():
            self._write(self._offset(chunk), data)
            with (self.path / CHUNKS).open("a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())

    def finish(self, packages: Mapping[str, str]) -> None:
        """Mark the folder as complete. Needs the lock.

        Args:
            packages: versions of what made the features, for a reader.
        """
        metadata = {"key": self.key.to_json(), "shape": self._shape(), "packages": dict(packages)}
        with self._writing():
            files.write_text(self.path / METADATA, json.dumps(metadata, indent=2) + "\n")

    def read(self) -> StoredFeatures:
        """Map the array of a folder that is ready."""
        shape = (self.key.num_examples, self.key.num_views, *self.key.row_shape)
        if not self.key.num_examples:
            return StoredFeatures(np.zeros(shape, self._dtype))
        # Copy-on-write, not read-only: torch warns of arrays it may not write to. Nothing ever reaches the file.
        array = np.memmap(self.path / ARRAY, self._dtype, "c", HEADER_SIZE, shape)
        return StoredFeatures(array, hashlib.sha256(repr(sorted(self._log()[1].items())).encode()).hexdigest())

    def _shape(self) -> tuple[int, ...]:
        """Shape of the array in the file: [n, k, *m, d], or [n, *m, d] where there is one view."""
        views = (self.key.num_views,) if self.key.num_views > 1 else ()
        return (self.key.num_examples, *views, *self.key.row_shape)

    def _npy_header(self) -> bytes:
        """Return the header of the array's file, of one length whatever the version of numpy."""
        words = f"{{'descr': '{self._dtype.str}', 'fortran_order': False, 'shape': {self._shape()}, }}"
        start = b"\x93NUMPY\x01\x00" + (HEADER_SIZE - 10).to_bytes(2, "little")
        return start + words.encode("ascii").ljust(HEADER_SIZE - 11) + b"\n"

    def _has_header(self) -> bool:
        """Whether the array's file begins as it must."""
        try:
            with (self.path / ARRAY).open("rb") as file:
                return file.read(HEADER_SIZE) == self._header
        except OSError:
            return False

    def _log(self) -> tuple[bool, dict[int, int]]:
        """Read the log: whether it is of this key, and the checksum of each chunk. Broken lines are left out."""
        try:
            first, *lines = (self.path / CHUNKS).read_bytes().splitlines()
        except (OSError, ValueError):
            return False, {}
        checksums = {}
        for line in lines:
            entry = _parse(line) or {}
            chunk, checksum = entry.get("chunk"), entry.get("crc32")
            if isinstance(chunk, int) and isinstance(checksum, int) and 0 <= chunk < self.key.num_chunks:
                checksums[chunk] = checksum
        return _parse(first) == self.key.to_json(), checksums

    def _sound(self, checksums: Mapping[int, int]) -> set[int]:
        """Return the chunks whose bytes on the disk fit their checksums, reading one chunk at a time."""
        sound = set()
        # What cannot be read is as good as damaged.
        with contextlib.suppress(OSError), (self.path / ARRAY).open("rb") as file:
            for chunk, checksum in sorted(checksums.items()):
                file.seek(self._offset(chunk))
                size = len(self.rows(chunk)) * self._row_bytes
                data = file.read(size)
                if len(data) == size and zlib.crc32(data) == checksum:
                    sound.add(chunk)
        return sound

    def _offset(self, chunk: int) -> int:
        """First byte of a chunk in the array's file."""
        return HEADER_SIZE + chunk * self.key.chunk_size * self._row_bytes

    def _write(self, offset: int, data: bytes) -> None:
        """Write bytes in place, and wait until they are on the disk."""
        handle = os.open(self.path / ARRAY, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.lseek(handle, offset, os.SEEK_SET)
            left = memoryview(data)
            while left:
                left = left[os.write(handle, left) :]
            os.fsync(handle)
        finally:
            os.close(handle)

    def _check_space(self) -> None:
        """Raise before hours of work if the disk has no room for what is still to come."""
        if shutil.disk_usage(self.path).free < self._size - (self.path / ARRAY).stat().st_size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _try_lock(self, handle: int) -> bool:
        """Take the lock of an open file if nobody has it."""
        if fcntl is None:  # pragma: no cover
            return True
        with self._writing():
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn what the system says of a failed write into an error that says what to do."""
        try:
            yield
        except OSError as error:
            what = f"Features of {self.key.dataset} {self.key.split}"
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise DataError(
                    f"{what} need {self._size / 1e6:.1f} MB in {self.path}, and the disk has no room for them. Make "
                    f"room, or set runtime.cache_dir to a folder on another disk. What is encoded already is kept."
                ) from error
            raise DataError(
                f"{what} cannot be written to {self.path} ({error.strerror}). Check its permissions, or set "
                f"runtime.cache_dir to another folder."
            ) from error


def _read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if it is missing or damaged."""
    try:
        return _parse(path.read_bytes())
    except OSError:
        return None


def _parse(line: bytes) -> dict[str, Any] | None:
    """Read one JSON object; None if it is none."""
    try:
        value = json.loads(line)
    except ValueError:  # UnicodeDecodeError too
        return None
    return value if isinstance(value, dict) else None


def key_of(path: Path) -> FeatureKey | None:
    """Return the key of a folder of features; None if the folder is no such thing."""
    try:
        with (path / CHUNKS).open("rb") as file:
            values = _parse(file.readline()) or {}
        values.pop("last_chunk", None)
        return FeatureKey(**values)
    except (OSError, TypeError):
        return None
