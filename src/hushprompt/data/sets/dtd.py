"""Describable Textures: 47 words for what surfaces look like."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from hushprompt.data.base import Dataset
from hushprompt.data.class_folders import coop_dataset, image_dataset
from hushprompt.data.listing import About, Example, Listing, OnDisk
from hushprompt.errors import DataError
from hushprompt.registry import DATASETS

ABOUT = About(
    name="dtd",
    title="Describable Textures (DTD)",
    citation="M. Cimpoi, S. Maji, I. Kokkinos, S. Mohamed, A. Vedaldi. Describing Textures in the Wild. CVPR 2014.",
    license="for research purposes, as the authors say; the images belong to those who took them",
    homepage="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
    folders=("dtd", "dtd/dtd"),
    needs=("images",),
    layout=(
        "dtd/                                  (or dtd/dtd/)\n"
        "  images/banded/banded_0002.jpg\n"
        '  labels/train1.txt, val1.txt, test1.txt   (for split = "official")\n'
        "  split_zhou_DescribableTextures.json      (optional: CoOp's split)"
    ),
    how_to_get=(
        "1. Download dtd-r1.0.1.tar.gz from https://www.robots.ox.ac.uk/~vgg/data/dtd/.\n"
        "2. Unpack it into data/ (it makes dtd/).\n"
        "3. For CoOp's split, put split_zhou_DescribableTextures.json (https://github.com/KaiyangZhou/CoOp, "
        "DATASETS.md) into dtd/."
    ),
    torchvision="DTD",
)
NUM_CLASSES = 47


@DATASETS.register("dtd")
@dataclass(frozen=True, kw_only=True)
class DTD(OnDisk):
    """Describable Textures: 47 classes, 5,640 images. Split: CoOp's file, else 50/20/30 per class; or the authors'."""

    about: ClassVar[About] = ABOUT
    split: Literal["coop", "official"] = "coop"
    """"coop": CoOp's split file where it lies beside the data, else its sizes. "official": the first of the authors'
    ten splits, labels/*1.txt, a third each."""

    def load(self) -> Dataset:
        """List the images; nothing is decoded yet."""
        if self.split == "official":
            return image_dataset(self, "images", _read_labels(self.home() / "labels"))
        return coop_dataset(
            self, images="images", split_file="split_zhou_DescribableTextures.json", num_classes=NUM_CLASSES
        )


def _read_labels(folder: Path) -> Listing:
    """Read the authors' first split: one "banded/banded_0002.jpg" a line."""
    listed = {}
    for file, split in (("train1.txt", "train"), ("val1.txt", "validation"), ("test1.txt", "test")):
        try:
            listed[split] = (folder / file).read_text(encoding="utf-8").split()
        except (OSError, ValueError) as error:
            raise DataError(
                f"{folder / file} is missing or damaged ({error}). Unpack dtd-r1.0.1.tar.gz again."
            ) from error
    names = sorted({image.partition("/")[0] for images in listed.values() for image in images})
    if len(names) != NUM_CLASSES:
        raise DataError(
            f"{folder} must list {NUM_CLASSES} classes, found {len(names)}. Unpack dtd-r1.0.1.tar.gz again."
        )
    labels = {name: label for label, name in enumerate(names)}
    return Listing(
        class_names=tuple(name.replace("_", " ") for name in names),
        examples=[
            Example(image, labels[image.partition("/")[0]], split)
            for split, images in listed.items()
            for image in images
        ],
        split_source="the authors' labels/train1.txt, val1.txt and test1.txt",
    )
