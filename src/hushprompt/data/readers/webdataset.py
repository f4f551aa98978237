"""WebDataset tars: `key.jpg` with `key.cls`, `key.txt` or `key.json`. They are indexed once and read in place."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hushprompt.data.base import Dataset
from hushprompt.data.class_folders import is_stray
from hushprompt.data.decoding import AUDIO_SUFFIXES, IMAGE_SUFFIXES, media_of, suffix
from hushprompt.data.listing import file_stamp
from hushprompt.data.readers.base import Found, OwnData, once, required, text_of
from hushprompt.errors import DataError
from hushprompt.registry import DATASETS

LABEL_SUFFIXES = ("cls", "json", "txt")
"""Where the class is looked for, in this order; a .txt beside a .cls is often a caption."""


@dataclass(frozen=True)
class Members:
    """Files inside tars, by offset. No tar is held open, none is unpacked."""

    folder: Path
    names: Sequence[str] = field(repr=False)
    """"shard.tar/key.jpg" """
    shards: Sequence[str] = field(repr=False)
    """The tars, below the folder."""
    places: np.ndarray = field(repr=False)
    """int64 [n, 3]: tar, offset and size of each file."""

    def describe(self, row: int) -> str:
        """Return the tar's path and the file in it."""
        return str(self.folder / self.names[row])

    def stamp(self, row: int) -> str:
        """Return offset and size, and the tar's stamp."""
        shard, offset, size = self.places[row]
        return f"{offset} {size} {file_stamp((self.folder / self.shards[shard]).stat())}"

    def size(self, row: int) -> int:
        """Return the size of the file in the tar."""
        return int(self.places[row][2])

    def fetch(self, row: int) -> bytes:
        """Read the file's bytes from the tar."""
        data = self.piece(row, 0, self.size(row))
        if len(data) < self.size(row):
            raise DataError(f"{self.describe(row)} is cut off: the tar ends before it.")
        return data

    def piece(self, row: int, start: int, length: int) -> bytes:
        """Read a part of the file's bytes from the tar."""
        shard, offset, size = self.places[row]
        try:
            with (self.folder / self.shards[shard]).open("rb") as file:
                file.seek(int(offset) + start)
                return file.read(min(length, int(size) - start))
        except OSError as error:
            raise DataError(f"{self.describe(row)} cannot be read ({error.strerror}).") from error


@dataclass
class Sample:
    """What a tar says of one key while it is read."""

    key: str
    media: str = ""
    place: tuple[int, int] = (0, 0)
    labels: dict[str, str] = field(default_factory=dict)
    """By ending of the file that says so."""
    client: str | None = None
    domain: str | None = None
    group: str | None = None

    label: str = ""
    """The class, when all files of the key are read; empty if none names one."""


@DATASETS.register("webdataset")
@dataclass(frozen=True, kw_only=True)
class WebDataset(OwnData):
    """Your own images or sounds in WebDataset tars, not compressed."""

    root: str = ""
    """Folder of the tars."""
    train: str = "*train*.tar"
    """Tars of the training split: a pattern below root. Where test matches none, these are split by the fractions."""
    validation: str = "*val*.tar"
    """Tars for choosing settings; may match none."""
    test: str = "*test*.tar"
    """Tars of the test split; may match none."""
    label_key: str = "label"
    """Entry of key.json that is the class."""
    client_key: str = "client"
    """Entry of key.json that is the client, where it is there."""
    domain_key: str = "domain"
    """Entry of key.json that is the domain, where it is there."""
    group_key: str = "group"
    """Entry of key.json that is whose example it is, such as a patient, where it is there."""

    def load(self) -> Dataset:
        """Index the tars; no example is decoded yet."""
        required("WebDataset tars", root=self.root)
        root = Path(self.root).expanduser()
        shards = {
            split: sorted(path.relative_to(root).as_posix() for path in root.glob(pattern))
            for split, pattern in (("train", self.train), ("validation", self.validation), ("test", self.test))
        }
        if not shards["train"]:
            raise DataError(
                f"{root} has no tar called {self.train}. Name yours with data.train, such as data.train=*.tar"
            )
        if not shards["test"]:
            if shards["validation"]:
                raise DataError(
                    f"{root} has tars called {self.validation}, but none called {self.test}. Set data.test."
                )
            shards = {"": shards["train"]}
        found, places, names = [], [], []
        every = [(split, shard) for split, group in shards.items() for shard in group]
        if len({(root / shard).resolve() for _, shard in every}) < len(every):
            raise DataError(
                f"A tar in {root} belongs to two splits, or is there twice by a link. Make data.train, validation and "
                "test disjoint."
            )
        for number, (split, shard) in enumerate(every):
            for sample in self._samples(root / shard):
                names.append(f"{shard}/{sample.media}")
                places.append((number, *sample.place))
                found.append(Found(names[-1], sample.label, split or None, sample.domain, sample.client, sample.group))
        source = Members(root, names, [shard for _, shard in every], np.array(places, dtype=np.int64).reshape(-1, 3))
        return self.dataset("webdataset", root, found, source, media_of(names, self.sampling_rate, str(root)))

    def _samples(self, path: Path) -> Iterator[Sample]:
        """Return the samples of one tar, in its order; the files of a key lie next to each other."""
        sample = Sample("")
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # the list would grow with the tar
                    folder, slash, file = member.name.rpartition("/")
                    stem, _, ending = file.partition(".")
                    if not member.isfile() or file.startswith(".") or is_stray(member.name):
                        continue
                    key = folder + slash + stem
                    if key != sample.key:
                        if sample.key:
                            yield _complete(sample, path)
                        sample = Sample(key)
                    if suffix(ending) in IMAGE_SUFFIXES | AUDIO_SUFFIXES:
                        if sample.media:
                            raise DataError(f"{path}: {key} has two examples, {sample.media} and {member.name}.")
                        sample.media, sample.place = member.name, (member.offset_data, member.size)
                    elif ending in LABEL_SUFFIXES:
                        reader = tar.extractfile(member)
                        assert reader is not None, "a regular file can be read"
                        self._describe(sample, ending, reader.read(), path)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise DataError(f"{path} is not an uncompressed tar, or cut off ({error}). Make it again.") from error
        if sample.key:
            yield _complete(sample, path)

    def _describe(self, sample: Sample, ending: str, data: bytes, path: Path) -> None:
        """Take over what a label file says."""
        where = f"{path}: {sample.key}.{ending}"
        try:
            text = data.decode("utf-8-sig")
            if ending == "json":
                content = json.loads(text, object_pairs_hook=once)
                keys = (self.label_key, self.client_key, self.domain_key, self.group_key)
                sample.labels[ending], *named = (
                    text_of(content.get(key), where, key, is_class=key == self.label_key) for key in keys
                )
                sample.client, sample.domain, sample.group = (name or None for name in named)
            else:
                sample.labels[ending] = text
        except (ValueError, AttributeError, RecursionError) as error:
            raise DataError(f"{where} cannot be read ({error}). Make the tar again.") from error


def _complete(sample: Sample, path: Path) -> Sample:
    """Return a sample that has an example and a class, or say what is missing."""
    if ending := next((ending for ending in LABEL_SUFFIXES if sample.labels.get(ending, "").strip()), ""):
        sample.label = text_of(sample.labels[ending], f"{path}: {sample.key}.{ending}", "label", is_class=True)
    if not sample.media or not sample.label:
        what = "label (.cls, .txt or .json)" if sample.media else "image or sound"
        raise DataError(f"{path}: {sample.key} has no {what}.")
    return sample
