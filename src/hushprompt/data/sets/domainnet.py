"""DomainNet: the same things as clip art, infographics, paintings, quick drawings, photographs and sketches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from hushprompt import checks
from hushprompt.data.base import Dataset
from hushprompt.data.class_folders import image_dataset
from hushprompt.data.listing import About, Example, Listing, OnDisk, missing_file
from hushprompt.data.pickles import has_lists, read_lists
from hushprompt.data.splitting import hold_out
from hushprompt.errors import DataError
from hushprompt.registry import DATASETS

ABOUT = About(
    name="domainnet",
    title="DomainNet",
    citation=(
        "X. Peng, Q. Bai, X. Xia, Z. Huang, K. Saenko, B. Wang. Moment Matching for Multi-Source Domain Adaptation. "
        "ICCV 2019. Ten classes: X. Li et al. FedBN. ICLR 2021."
    ),
    license="some images are copyrighted; the authors offer them for academic research under fair use",
    homepage="http://ai.bu.edu/M3SDA/",
    folders=("domainnet", "DomainNet"),
    needs=("clipart", "infograph", "painting", "quickdraw", "real", "sketch"),
    layout=(
        "domainnet/                            (or DomainNet/)\n"
        "  clipart/CLASS/clipart_001_000018.jpg   and infograph/, painting/, quickdraw/, real/, sketch/\n"
        "  clipart_train.txt, clipart_test.txt    and so on: the authors' lists\n"
        '  clipart_train.pkl, clipart_test.pkl    and so on: FedBN\'s lists of ten classes (optional; subset = "ten")'
    ),
    how_to_get=(
        "1. From http://ai.bu.edu/M3SDA/ (cleaned version) download clipart.zip, infograph.zip, painting.zip, "
        "quickdraw.zip, real.zip, sketch.zip and the train and test lists (*_train.txt, *_test.txt).\n"
        "2. Unpack the zips into data/domainnet/ and put the lists beside the folders.\n"
        "3. For FedBN's ten classes with its split, put its *_train.pkl and *_test.pkl "
        "(https://github.com/med-air/FedBN) beside them."
    ),
)
DOMAINS = ABOUT.needs
TEN: tuple[str, ...] = (
    "bird",
    "feather",
    "headphones",
    "ice_cream",
    "teapot",
    "tiger",
    "whale",
    "windmill",
    "wine_glass",
    "zebra",
)
"""FedBN's classes, in its order."""
NUM_CLASSES = 345


@DATASETS.register("domainnet")
@dataclass(frozen=True, kw_only=True)
class DomainNet(OnDisk):
    """DomainNet: 6 domains of 345 classes, or FedBN's ten. Split: FedBN's lists of the ten, else the authors'."""

    about: ClassVar[About] = ABOUT
    subset: Literal["ten", "all"] = "ten"
    """"ten": FedBN's ten classes, by FedBN's lists where they lie beside the data. "all": 345 classes."""
    validation_fraction: float = 0.0
    """Share of each class's training images that is held out for choosing settings; the authors hold out none."""

    def __post_init__(self) -> None:
        checks.in_range(0, 0.9, validation_fraction=self.validation_fraction)

    def load(self) -> Dataset:
        """List the images; nothing is decoded yet."""
        home = self.home()
        if self.subset == "ten" and has_lists(home, DOMAINS):
            names, examples = TEN, read_lists(home, DOMAINS, TEN)
            source = "FedBN's lists (*_train.pkl, *_test.pkl)"
        else:
            names, examples = self._read_texts(home)
            source = "the authors' lists (*_train.txt, *_test.txt)"
        class_names = tuple(name.replace("_", " ") for name in names)
        listing = Listing(
            class_names=class_names,
            examples=hold_out(examples, class_names, ABOUT.name, self.validation_fraction),
            domain_names=DOMAINS,
            split_source=source,
        )
        return image_dataset(self, "", listing)

    def _read_texts(self, home: Path) -> tuple[tuple[str, ...], list[Example]]:
        """Read the authors' lists and keep the subset."""
        names: dict[int, str] = {}
        examples = []
        for domain, folder in enumerate(DOMAINS):
            for split in ("train", "test"):
                path = home / f"{folder}_{split}.txt"
                if not path.exists():
                    raise missing_file(path, Path(self.root), ABOUT)
                for image, word, label in _read_text(path):
                    if names.setdefault(label, word) != word:
                        raise DataError(f"{path}: label {label} is both {names[label]} and {word}. Get it again.")
                    examples.append(Example(image, label, split, domain))
        if sorted(names) != list(range(NUM_CLASSES)):
            raise DataError(f"The lists in {home} must name {NUM_CLASSES} classes, found {len(names)}. Get them again.")
        everything = tuple(names[label] for label in range(NUM_CLASSES))
        if self.subset == "all":
            return everything, examples
        chosen = {everything.index(name): label for label, name in enumerate(TEN)}
        return TEN, [e._replace(label=chosen[e.label]) for e in examples if e.label in chosen]


def _read_text(path: Path) -> Iterator[tuple[str, str, int]]:
    """Return image, class and label of each line, such as "clipart/aircraft_carrier/clipart_001_000018.jpg 0"."""
    for line in path.read_text(encoding="utf-8").splitlines():
        image, _, label = line.rpartition(" ")
        if not label.isdecimal() or image.count("/") != 2:
            raise DataError(f"{path}: {line!r} is not DOMAIN/CLASS/IMAGE LABEL. Get it again.")
        yield image, image.split("/")[1], int(label)
