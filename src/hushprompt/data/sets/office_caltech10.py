"""Office-Caltech10: ten things at an office, from four sources of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hushprompt import checks
from hushprompt.data.base import Dataset
from hushprompt.data.class_folders import image_dataset, media_files
from hushprompt.data.listing import About, Example, Listing, OnDisk
from hushprompt.data.pickles import has_lists, read_lists
from hushprompt.data.splitting import COOP_RULE, hold_out, split_per_class
from hushprompt.errors import DataError
from hushprompt.registry import DATASETS

ABOUT = About(
    name="office_caltech10",
    title="Office-Caltech10",
    citation=(
        "B. Gong, Y. Shi, F. Sha, K. Grauman. Geodesic Flow Kernel for Unsupervised Domain Adaptation. CVPR 2012. "
        "This layout: X. Li et al. FedBN. ICLR 2021."
    ),
    license="not stated by the authors; the images belong to those who took them",
    homepage="https://github.com/med-air/FedBN",
    folders=("office_caltech_10",),
    needs=("amazon", "caltech", "dslr", "webcam"),
    layout=(
        "office_caltech_10/\n"
        "  amazon/back_pack/frame_0001.jpg         and caltech/, dslr/, webcam/; ten class folders in each\n"
        "  amazon_train.pkl, amazon_test.pkl       and so on: FedBN's lists (optional)"
    ),
    how_to_get=(
        "1. Download office_caltech_10_dataset.zip; the link is in the README of https://github.com/med-air/FedBN.\n"
        "2. Unpack it into data/ (it makes office_caltech_10/)."
    ),
)
DOMAINS = ABOUT.needs
TEN = (
    "back_pack", "bike", "calculator", "headphones", "keyboard", "laptop_computer", "monitor", "mouse", "mug",
    "projector",
)  # fmt: skip
"""Folders of the classes, in FedBN's order."""
NAMES = tuple(name.replace("_", " ") for name in TEN)


@DATASETS.register("office_caltech10")
@dataclass(frozen=True, kw_only=True)
class OfficeCaltech10(OnDisk):
    """Office-Caltech10: 4 domains of 10 classes, 2,533 images. Split: FedBN's lists, else 50/20/30 per class."""

    about: ClassVar[About] = ABOUT
    validation_fraction: float = 0.0
    """Share of each class's training images that is held out of FedBN's for choosing settings; FedBN's own is 0."""

    def __post_init__(self) -> None:
        checks.in_range(0, 0.9, validation_fraction=self.validation_fraction)

    def load(self) -> Dataset:
        """List the images; nothing is decoded yet."""
        home = self.home()
        if has_lists(home, DOMAINS):
            examples = hold_out(read_lists(home, DOMAINS, TEN), NAMES, ABOUT.name, self.validation_fraction)
            source = "FedBN's lists (*_train.pkl, *_test.pkl)"
        else:
            examples, source = _deal(home), f"{COOP_RULE}, in each domain"
        listing = Listing(class_names=NAMES, examples=examples, domain_names=DOMAINS, split_source=source)
        return image_dataset(self, "", listing)


def _deal(home: Path) -> list[Example]:
    """List the folders, and split each domain on its own."""
    dealt = []
    for domain, domain_folder in enumerate(DOMAINS):
        examples = []
        for label, class_folder in enumerate(TEN):
            folder = home / domain_folder / class_folder
            if not folder.is_dir():
                raise DataError(f"The class folder {folder} is missing. Get it so:\n{ABOUT.how_to_get}")
            names = media_files(folder)
            examples += [Example(f"{domain_folder}/{class_folder}/{name}", label, "", domain) for name in names]
        dealt += split_per_class(examples, NAMES, f"{ABOUT.name} {domain_folder}")
    return dealt
