"""From a list of examples and the place where their bytes lie to a `Dataset`; nothing is decoded until asked for.

Every data set of encoded files goes the same way: its file in this folder lists `Example`s (name, label, split), says
where the bytes are (a `Source`), and `build` does the rest: fingerprints, checksum, and what to do about examples that
cannot be read.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from hushprompt.data.base import Dataset, HeldByClients, Split
from hushprompt.data.decoding import Media
from hushprompt.errors import ConfigError, DataError
from hushprompt.extras import install_hint

logger = logging.getLogger(__name__)
SPLITS = ("train", "validation", "test")
OnUnreadable = Literal["error", "skip"]
WHOLE, PART = 2**20, 2**16
"""Bytes up to which a sample of a file is all of it, and bytes of each of the three parts of a larger one."""


class Example(NamedTuple):
    """One example before it is read."""

    name: str
    """Path below the data set's folder, or where in a file it lies; unique in its data set."""
    label: int
    split: str = ""
    domain: int = 0
    client: int | None = None
    group: int | None = None


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All examples of a data set, in order, and what their numbers mean."""

    class_names: tuple[str, ...]
    examples: Sequence[Example]
    split_source: str
    """Who says which example is in which split."""
    domain_names: tuple[str, ...] = ("all",)
    client_names: tuple[str, ...] = ()
    group_names: tuple[str, ...] = ()


@runtime_checkable
class Source(Protocol):
    """Where the bytes of examples lie; row i is the listing's example i."""

    def describe(self, row: int) -> str:
        """Name an example so that a reader can find it."""

    def stamp(self, row: int) -> str:
        """Return a text that changes when the example does, without reading it; DataError if it is not there."""

    def fetch(self, row: int) -> bytes:
        """Read an example's bytes; DataError if it is not there."""


@runtime_checkable
class Sized(Source, Protocol):
    """A source that knows the sizes of its examples, and can read a part of one."""

    def size(self, row: int) -> int:
        """Return an example's bytes without reading it; DataError if it is not there."""

    def piece(self, row: int, start: int, length: int) -> bytes:
        """Read `length` bytes from `start` on, fewer where the example ends; DataError if it is not there."""


def sample(source: Sized, row: int) -> bytes:
    """Read an example of up to `WHOLE` bytes, of a larger one `PART` bytes of start, middle and end."""
    size = source.size(row)
    if size <= WHOLE:
        return source.piece(row, 0, size)
    return b"".join(source.piece(row, start, PART) for start in (0, (size - PART) // 2, size - PART))


def file_stamp(status: os.stat_result) -> str:
    """Return a text that changes when a file does.

    The time of its last change (ctime) counts beside the date that programs may set as they like: without it, features
    of other bytes would be served after a copy with `cp -p` or an unpacked archive.
    """
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


@dataclass(frozen=True)
class Files:
    """One file per example, below one folder. None is held open."""

    folder: Path
    names: Sequence[str] = field(repr=False)

    def describe(self, row: int) -> str:
        """Return the path."""
        return str(self.folder / self.names[row])

    def stamp(self, row: int) -> str:
        """Return what changes when the file does."""
        return file_stamp(self._status(row))

    def size(self, row: int) -> int:
        """Return the file's size."""
        return self._status(row).st_size

    def fetch(self, row: int) -> bytes:
        """Read the file."""
        try:
            return (self.folder / self.names[row]).read_bytes()
        except OSError as error:
            raise DataError(f"The file {self.describe(row)} cannot be read ({error.strerror}).") from error

    def piece(self, row: int, start: int, length: int) -> bytes:
        """Read a part of the file."""
        try:
            with (self.folder / self.names[row]).open("rb") as file:
                file.seek(start)
                return file.read(length)
        except OSError as error:
            raise DataError(f"The file {self.describe(row)} cannot be read ({error.strerror}).") from error

    def _status(self, row: int) -> os.stat_result:
        """Return what the file system says of a file."""
        try:
            return (self.folder / self.names[row]).stat()
        except OSError as error:
            raise DataError(f"The file {self.describe(row)} is missing ({error.strerror}).") from error


@dataclass(frozen=True)
class Decoded:
    """The reader of one split: fetches and decodes when asked."""

    source: Source
    rows: np.ndarray
    """Which rows of the source are the split's examples [n]."""
    media: Media

    def __call__(self, indices: np.ndarray) -> list[np.ndarray]:
        """Return examples by index within the split."""
        return [self.decode(int(row)) for row in self.rows[indices]]

    def decode(self, row: int) -> np.ndarray:
        """Return one example of the source."""
        return self.media.decode(self.source.fetch(row), self.source.describe(row))


@dataclass(frozen=True, kw_only=True)
class About:
    """What a reader should know of a data set, and where its files go."""

    name: str
    """As in a config."""
    title: str
    citation: str
    license: str
    homepage: str = ""
    layout: str = ""
    """The files below `root`, as a tree; only what is read."""
    how_to_get: str = ""
    """Step by step, for one without `hushprompt data fetch`."""
    folders: tuple[str, ...] = ()
    """What the data set's folder below `root` may be called; `root` itself is tried first."""
    needs: tuple[str, ...] = ()
    """What must be in that folder."""
    torchvision: str = ""
    """Class of torchvision.datasets that downloads it; empty where there is none."""


@dataclass(frozen=True, kw_only=True)
class Known(HeldByClients):
    """Fields of every data set of the field: where it lies, and whether it may be fetched."""

    is_public: ClassVar[bool] = True
    about: ClassVar[About]
    """The data set in words."""
    root: str = "data"
    """Folder that holds the data set's own folder, or that folder itself."""
    download: bool = False
    """Whether a data set that is missing is downloaded, as by `hushprompt data fetch`, where torchvision can."""

    def home(self) -> Path:
        """Return the data set's own folder, after a download where it is missing and `download` allows it."""
        root = Path(self.root).expanduser()
        try:
            return find_home(root, self.about)
        except DataError:
            if not self.download:
                raise
        fetch(self.about, root)
        return find_home(root, self.about)


@dataclass(frozen=True, kw_only=True)
class OnDisk(Known):
    """Fields of every data set of encoded files."""

    on_unreadable: OnUnreadable = "error"
    """"error": a damaged example stops the run and is named. "skip": all are read at every start, and damaged ones are
    left out, named and counted."""


def find_home(root: Path, about: About) -> Path:
    """Return the folder, `root` or one below it, that has what the data set needs.

    Raises:
        DataError: none has; the message says what is missing, the layout, and how to get it.
    """
    places = [root, *(root / folder for folder in about.folders)]
    missing = [[place / need for need in about.needs if not (place / need).exists()] for place in places]
    if [] in missing:
        return places[missing.index([])]
    # What was begun is named; of nothing, the first folder below root.
    nearest = min(range(len(places)), key=lambda at: (len(missing[at]), at == 0, not places[at].is_dir()))
    raise missing_file(missing[nearest][0], root, about)


def missing_file(path: Path, root: Path, about: About) -> DataError:
    """Return the error for a file of a known data set that is not there."""
    get = f"hushprompt data fetch {about.name} --root {root}" if about.torchvision else about.how_to_get
    return DataError(f"{about.title}: {path} is missing. Expected below {root}:\n{about.layout}\nGet it with:\n{get}")


def build(about: About, listing: Listing, source: Source, media: Media, on_unreadable: OnUnreadable) -> Dataset:
    """Make a `Dataset` of a listing.

    Args:
        about: names, citation, license.
        listing: the examples and their splits.
        source: their bytes, in the listing's order.
        media: how they are decoded.
        on_unreadable: "skip" reads everything now and leaves out what cannot be read; "error" reads nothing now.

    Raises:
        DataError: an example's file is missing, or the listing does not agree with itself.
    """
    examples = listing.examples
    rows = list(range(len(examples)))
    if on_unreadable == "skip":
        rows = _readable(about.title, Decoded(source, np.array(rows, dtype=np.int64), media))
    splits = {}
    for split_name in SPLITS:
        chosen = [row for row in rows if examples[row].split == split_name]
        if not chosen:
            continue
        clients, groups = ([getattr(examples[row], of) for row in chosen] for of in ("client", "group"))
        digest = hashlib.sha256(repr(media).encode())
        for row in chosen:
            digest.update(f"{examples[row].name}\n{source.stamp(row)}\n".encode(errors="surrogateescape"))
        splits[split_name] = Split(
            labels=np.array([examples[row].label for row in chosen], dtype=np.int64),
            domains=np.array([examples[row].domain for row in chosen], dtype=np.int64),
            clients=None if None in clients else np.array(clients, dtype=np.int64),
            groups=None if None in groups else np.array(groups, dtype=np.int64),
            read=Decoded(source, np.array(chosen, dtype=np.int64), media),
            fingerprint=digest.hexdigest(),
        )
    return Dataset(
        name=about.name,
        class_names=listing.class_names,
        domain_names=listing.domain_names,
        client_names=listing.client_names,
        group_names=listing.group_names,
        splits=splits,
        citation=about.citation,
        license=about.license,
        modality=media.modality,
        sampling_rate=media.sampling_rate,
        split_source=listing.split_source,
        split_checksum=split_checksum(examples),
        num_skipped=len(examples) - len(rows),
    )


def whole_split(count: int, source: Source, media: Media) -> Split:
    """Return all examples of a source as one split, of which nothing is known yet but their bytes."""
    none = np.zeros(count, dtype=np.int64)
    return Split(labels=none, domains=none, read=Decoded(source, np.arange(count), media), fingerprint="")


def split_checksum(examples: Sequence[Example]) -> str:
    """Return the SHA-256 of the sorted lines "split<tab>name<tab>label".

    >>> split_checksum([Example("b.jpg", 1, "test"), Example("a.jpg", 0, "train")])[:12]
    'ddd8291a5d58'
    """
    lines = sorted(f"{example.split}\t{example.name}\t{example.label}\n" for example in examples)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _readable(title: str, reader: Decoded) -> list[int]:
    """Read everything, side by side; give the rows that could be read, and log the others."""

    def problem(row: int) -> str:
        try:
            reader.source.stamp(row)
            reader.decode(row)
        except DataError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(problem, range(len(reader.rows))))
    found = [text for text in problems if text]
    if found:
        logger.warning(
            "%s: %d of %d examples cannot be read and are left out:\n%s",
            title, len(found), len(problems), "\n".join(found),
        )  # fmt: skip
    return [row for row, text in enumerate(problems) if not text]


def fetch(about: About, root: Path) -> None:
    """Download a data set into its folder below `root`; what is there already is not downloaded again.

    Raises:
        ConfigError: torchvision is missing.
        DataError: torchvision has no download for it, or the download failed; the message says how to do it by hand.
    """
    if not about.torchvision:
        raise DataError(f"{about.title} cannot be downloaded automatically. Get it so:\n{by_hand(about)}")
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise ConfigError(
            f"Downloads need torchvision ({error}). Get it with: {install_hint('torchvision')}. Or by hand:\n"
            f"{by_hand(about)}"
        ) from error
    root.mkdir(parents=True, exist_ok=True)
    try:
        getattr(datasets, about.torchvision)(root=str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"The download of {about.title} failed ({error}). By hand:\n{by_hand(about)}") from error


def by_hand(about: About) -> str:
    """Say how to get a data set, and what its folder then looks like."""
    return f"{about.how_to_get}\nExpected below data/ (or any folder that data.root names):\n{about.layout}"
