"""Data sets whose classes are folders: list them, and split them by CoOp's file or by its sizes."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from hushprompt.data.base import Dataset
from hushprompt.data.decoding import AUDIO_SUFFIXES, IMAGE_SUFFIXES, Media, suffix
from hushprompt.data.listing import Example, Files, Listing, OnDisk, build
from hushprompt.data.splitting import COOP_RULE, read_zhou_split, split_per_class
from hushprompt.errors import DataError

logger = logging.getLogger(__name__)


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without hidden ones."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def media_files(folder: Path) -> list[str]:
    """Return the images and sounds below a folder, as sorted relative paths; log what is neither."""
    found: list[str] = []
    others: list[str] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.startswith("."):
                continue
            path = (Path(place) / name).relative_to(folder).as_posix()
            (found if suffix(name) in IMAGE_SUFFIXES | AUDIO_SUFFIXES else others).append(path)
    if others:
        logger.warning(
            "%d files in %s are neither images nor sounds and are no examples: %s",
            len(others), folder, ", ".join(sorted(others)),
        )  # fmt: skip
    return sorted(found)


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
