"""Food-101: 101 dishes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from hushprompt.data.base import Dataset
from hushprompt.data.class_folders import coop_dataset, image_dataset
from hushprompt.data.listing import About, Example, Listing, OnDisk
from hushprompt.errors import DataError
from hushprompt.registry import DATASETS

ABOUT = About(
    name="food101",
    title="Food-101",
    citation=(
        "L. Bossard, M. Guillaumin, L. Van Gool. Food-101: Mining Discriminative Components with Random Forests. "
        "ECCV 2014."
    ),
    license="images from foodspotting.com; beyond scientific fair use, ask their owners (license_agreement.txt)",
    homepage="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
    folders=("food-101",),
    needs=("images",),
    layout=(
        "food-101/\n"
        "  images/CLASS/1005649.jpg\n"
        '  meta/train.json, meta/test.json     (for split = "official")\n'
        "  split_zhou_Food101.json             (optional: CoOp's split)"
    ),
    how_to_get=(
        "1. Download food-101.tar.gz from https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/.\n"
        "2. Unpack it into data/ (it makes food-101/).\n"
        "3. For CoOp's split, put split_zhou_Food101.json (https://github.com/KaiyangZhou/CoOp, DATASETS.md) into "
        "food-101/."
    ),
    torchvision="Food101",
)
NUM_CLASSES = 101


@DATASETS.register("food101")
@dataclass(frozen=True, kw_only=True)
class Food101(OnDisk):
    """Food-101: 101 dishes, 101,000 images. Split: CoOp's file, else 50/20/30 per class; or the authors'."""

    about: ClassVar[About] = ABOUT
    split: Literal["coop", "official"] = "coop"
    """"coop": CoOp's split file where it lies beside the data, else its sizes. "official": the authors' meta/*.json,
    750 images of a class for training and 250 for test, none for validation."""

    def load(self) -> Dataset:
        """List the images; nothing is decoded yet."""
        if self.split == "official":
            return image_dataset(self, "images", _read_meta(self.home() / "meta"))
        return coop_dataset(self, images="images", split_file="split_zhou_Food101.json", num_classes=NUM_CLASSES)


def _read_meta(folder: Path) -> Listing:
    """Read the authors' lists: for each class the images, "apple_pie/1005649"."""
    listed = {}
    for split in ("train", "test"):
        path = folder / f"{split}.json"
        try:
            listed[split] = {name: list(images) for name, images in json.loads(path.read_text()).items()}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise DataError(f"{path} is missing or damaged ({error}). Unpack food-101.tar.gz again.") from error
    folders = sorted(listed["train"])
    if len(folders) != NUM_CLASSES or folders != sorted(listed["test"]):
        raise DataError(f"{folder} must list the same {NUM_CLASSES} classes twice. Unpack food-101.tar.gz again.")
    return Listing(
        class_names=tuple(name.replace("_", " ") for name in folders),
        examples=[
            Example(f"{image}.jpg", label, split)
            for split in listed
            for label, name in enumerate(folders)
            for image in listed[split][name]
        ],
        split_source="the authors' meta/train.json and meta/test.json",
    )
