"""Oxford-IIIT Pets: 37 breeds of cats and dogs. Its own test split; a fifth of the rest is for validation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hushprompt.data.base import Dataset
from hushprompt.data.class_folders import coop_split, image_dataset
from hushprompt.data.listing import About, Example, Listing, OnDisk
from hushprompt.data.splitting import VALIDATION, hold_out
from hushprompt.errors import DataError
from hushprompt.registry import DATASETS

ABOUT = About(
    name="oxford_pets",
    title="Oxford-IIIT Pets",
    citation="O. M. Parkhi, A. Vedaldi, A. Zisserman, C. V. Jawahar. Cats and Dogs. CVPR 2012.",
    license="CC-BY-SA-4.0",
    homepage="https://www.robots.ox.ac.uk/~vgg/data/pets/",
    folders=("oxford_pets", "oxford-iiit-pet"),
    needs=("images", "annotations"),
    layout=(
        "oxford_pets/                          (or oxford-iiit-pet/)\n"
        "  images/Abyssinian_1.jpg\n"
        "  annotations/trainval.txt\n"
        "  annotations/test.txt\n"
        "  split_zhou_OxfordPets.json          (optional: CoOp's split)"
    ),
    how_to_get=(
        "1. Download images.tar.gz and annotations.tar.gz from https://www.robots.ox.ac.uk/~vgg/data/pets/.\n"
        "2. Unpack both into data/oxford_pets/.\n"
        "3. For CoOp's split, put split_zhou_OxfordPets.json (https://github.com/KaiyangZhou/CoOp, DATASETS.md) beside "
        "them."
    ),
    torchvision="OxfordIIITPet",
)
SPLIT_FILE = "split_zhou_OxfordPets.json"
NUM_CLASSES = 37


@DATASETS.register("oxford_pets")
@dataclass(frozen=True, kw_only=True)
class OxfordPets(OnDisk):
    """Oxford-IIIT Pets: 37 breeds, 7,349 images. Split: CoOp's file, else the authors' test, and 80/20 of trainval."""

    about: ClassVar[About] = ABOUT

    def load(self) -> Dataset:
        """List the images; nothing is decoded yet."""
        listing = coop_split(self, SPLIT_FILE) or _read_annotations(self.home() / "annotations")
        return image_dataset(self, "images", listing)


def _read_annotations(folder: Path) -> Listing:
    """Read the authors' lists: "Abyssinian_100 1 1 1" is image, breed from 1, cat or dog, number within those."""
    breeds: dict[int, str] = {}
    examples = []
    for file, split in (("trainval.txt", "train"), ("test.txt", "test")):
        try:
            lines = (folder / file).read_text(encoding="utf-8").splitlines()
            for image, breed, _, _ in (line.split() for line in lines if line.strip()):
                breeds.setdefault(int(breed) - 1, image.rpartition("_")[0].lower().replace("_", " "))
                examples.append(Example(f"{image}.jpg", int(breed) - 1, split))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{folder / file} is missing or damaged ({error}). Unpack annotations.tar.gz again."
            ) from error
    if sorted(breeds) != list(range(NUM_CLASSES)):
        raise DataError(
            f"{folder} must list {NUM_CLASSES} breeds, found {len(breeds)}. Unpack annotations.tar.gz again."
        )
    class_names = tuple(breeds[label] for label in range(NUM_CLASSES))
    return Listing(
        class_names=class_names,
        examples=hold_out(examples, class_names, ABOUT.name, VALIDATION),
        split_source="the authors' test.txt; trainval.txt cut 80/20 per class by hushprompt",
    )
