"""Data sets whose classes are folders: list them, and split them by CoOp's file or by its sizes."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hushprompt.data.base import Dataset
from hushprompt.data.decoding import AUDIO_SUFFIXES, IMAGE_SUFFIXES, Media, suffix
from hushprompt.data.findings import Finding, finding
from hushprompt.data.listing import Example, Files, Listing, OnDisk, build
from hushprompt.data.splitting import COOP_RULE, read_zhou_split, split_per_class
from hushprompt.errors import DataError

logger = logging.getLogger(__name__)
STRAY_FOLDERS = re.compile(
    r"@eadir|__macosx|\.@__thumb|#recycle|#snapshot|\$recycle\.bin|lost\+found|system volume information", re.IGNORECASE
)
"""Folders that a NAS or an operating system puts beside one's own; some hold small copies of the images."""
STRAY_FILES = re.compile(
    r"\.ds_store|\._.*|(eh)?thumbs\.db|desktop\.ini"
    r"|.*\.(part|partial|crdownload|download|filepart|aria2|opdownload|tmp|thm|lrv|aae|ctg)",
    re.IGNORECASE,
)
"""Files that an operating system, a camera or a download that was broken off leaves."""


def is_stray(path: str) -> bool:
    """Tell whether a path is of a file that a NAS, a camera, a download or an operating system left.

    >>> is_stray("cat/@eaDir/1.jpg"), is_stray("cat/._1.jpg"), is_stray("cat/1.jpg.part"), is_stray("cat/1.jpg")
    (True, True, True, False)
    """
    *folders, name = path.split("/")
    return any(STRAY_FOLDERS.fullmatch(folder) for folder in folders) or bool(STRAY_FILES.fullmatch(name))


def is_media(path: str) -> bool:
    """Tell by its ending whether a file is an image or a sound."""
    return suffix(path) in IMAGE_SUFFIXES | AUDIO_SUFFIXES


@dataclass
class Walk:
    """What lies below a folder: each real folder walked once, each real file counted once. Paths are relative to it."""

    folder: Path
    media: list[str] = field(default_factory=list)
    """Images and sounds."""
    others: list[str] = field(default_factory=list)
    """Files that are neither."""
    stray: list[str] = field(default_factory=list)
    """Files and folders that were left there by other programs; not looked into."""
    repeated: list[str] = field(default_factory=list)
    """Links to what was found already."""
    _real: set[str] = field(default_factory=set)
    """Real paths of the folders that were walked, and of files that links led to."""

    def findings(self) -> list[Finding]:
        """Return what is no example, and why."""
        return [
            *finding("links", "Links lead to what is counted already; each file is one example", self.repeated),
            *finding("other_files", "Files are neither images nor sounds and are no examples", self.others),
            *finding(
                "stray_files", "Files were left by a NAS, a camera or another program and are left out", self.stray
            ),
        ]

    def scan(self, place: str) -> list[str]:
        """Walk the real folders below a relative path, and return the links that were met.

        Raises:
            DataError: a folder cannot be listed.
        """
        self._real.add(os.path.realpath(self.folder / place))
        links = []
        try:
            entries = sorted(os.scandir(self.folder / place), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"The folder {self.folder / place} cannot be listed ({error.strerror}).") from error
        for entry in entries:
            path = f"{place}/{entry.name}" if place else entry.name
            is_folder = os.path.isdir(entry)  # not entry.is_dir(): a link to itself leads nowhere
            if STRAY_FOLDERS.fullmatch(entry.name) if is_folder else STRAY_FILES.fullmatch(entry.name):
                self.stray.append(path)
            elif entry.name.startswith("."):
                continue
            elif entry.is_symlink():
                links.append(path)
            elif is_folder:
                links += self._enter(path)
            else:
                self.take(path)
        return links

    def follow(self, links: list[str]) -> None:
        """Follow links to folders, then links to files, to whatever was not found without them."""
        while folders := [link for link in links if os.path.isdir(self.folder / link)]:
            files = [link for link in links if link not in set(folders)]
            links = [*files, *(met for folder in sorted(folders) for met in self._enter(folder))]
        for link in sorted(links):
            real = os.path.realpath(self.folder / link)
            if real in self._real or self._is_counted(real):
                self.repeated.append(link)
            else:
                self._real.add(real)
                self.take(link)

    def take(self, path: str) -> None:
        """Put a file where it belongs."""
        (self.media if is_media(path) else self.others).append(path)

    def _is_counted(self, real: str) -> bool:
        """Tell whether a real file was found in one of the folders that were walked."""
        place, _, name = real.rpartition("/")
        is_taken = is_media(name) and not name.startswith(".") and not STRAY_FILES.fullmatch(name)
        return place in self._real and is_taken and os.path.exists(real)

    def _enter(self, path: str) -> list[str]:
        """Walk a folder that was not walked yet."""
        if os.path.realpath(self.folder / path) in self._real:
            self.repeated.append(path)
            return []
        return self.scan(path)


def walk(folder: Path) -> Walk:
    """Return what lies below a folder; files that are found without links keep the path without."""
    walked = Walk(folder)
    walked.follow(walked.scan(""))
    for paths in (walked.media, walked.others, walked.stray, walked.repeated):
        paths.sort()
    return walked


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without hidden ones and those that a NAS left."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if os.path.isdir(path) and not path.name.startswith(".") and not STRAY_FOLDERS.fullmatch(path.name)
    )


def media_files(folder: Path) -> list[str]:
    """Return the images and sounds below a folder, as sorted relative paths; log what is no example."""
    walked = walk(folder)
    for one in walked.findings():
        logger.warning("%s: %s.", folder, one.line())
    return walked.media


def list_classes(
    folder: Path, *, num_classes: int, left_out: Collection[str] = (), names: Mapping[str, str] | None = None
) -> tuple[tuple[str, ...], list[Example]]:
    """List a folder of class folders whose number of classes is known; labels follow the sorted folder names.

    Raises:
        DataError: another number of class folders, or an empty one; the data set is not complete.
    """
    folders = [name for name in subfolders(folder) if name not in left_out]
    if len(folders) != num_classes:
        raise DataError(f"{folder} must have {num_classes} class folders, found {len(folders)}. Unpack it again.")
    examples = []
    for label, name in enumerate(folders):
        files = media_files(folder / name)
        if not files:
            raise DataError(f"The class folder {folder / name} is empty. Unpack it again.")
        examples += [Example(f"{name}/{file}", label) for file in files]
    return tuple((names or {}).get(name, name).replace("_", " ") for name in folders), examples


def coop_split(config: OnDisk, split_file: str) -> Listing | None:
    """Return the listing of CoOp's split file, if it lies in the data set's folder."""
    path = config.home() / split_file
    if not path.exists():
        return None
    class_names, examples = read_zhou_split(path)
    return Listing(class_names=class_names, examples=examples, split_source=split_file)


def coop_dataset(
    config: OnDisk,
    *,
    images: str,
    split_file: str,
    num_classes: int,
    left_out: Collection[str] = (),
    names: Mapping[str, str] | None = None,
) -> Dataset:
    """Load a data set of class folders: split by CoOp's file where it is there, else by CoOp's sizes."""
    listing = coop_split(config, split_file)
    if listing is None:
        folder = config.home() / images
        class_names, examples = list_classes(folder, num_classes=num_classes, left_out=left_out, names=names)
        dealt = split_per_class(examples, class_names, config.about.name)
        listing = Listing(class_names=class_names, examples=dealt, split_source=COOP_RULE)
    return image_dataset(config, images, listing)


def image_dataset(config: OnDisk, images: str, listing: Listing) -> Dataset:
    """Build a data set of image files below the folder `images` of its home."""
    source = Files(config.home() / images, [example.name for example in listing.examples])
    return build(config.about, listing, source, Media(), config.on_unreadable)
