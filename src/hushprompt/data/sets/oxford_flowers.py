"""Oxford Flowers 102: 102 flowers that grow in the United Kingdom."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from hushprompt.data.base import Dataset
from hushprompt.data.class_folders import coop_split, image_dataset
from hushprompt.data.listing import About, Example, Listing, OnDisk, missing_file
from hushprompt.data.splitting import COOP_RULE, split_per_class
from hushprompt.errors import DataError
from hushprompt.registry import DATASETS

ABOUT = About(
    name="oxford_flowers",
    title="Oxford Flowers 102",
    citation=(
        "M.-E. Nilsback, A. Zisserman. Automated Flower Classification over a Large Number of Classes. ICVGIP 2008."
    ),
    license="not stated by the authors; the images belong to those who took them",
    homepage="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
    folders=("oxford_flowers", "flowers-102"),
    needs=("jpg", "imagelabels.mat"),
    layout=(
        "oxford_flowers/                       (or flowers-102/)\n"
        "  jpg/image_00001.jpg\n"
        "  imagelabels.mat\n"
        '  setid.mat                           (for split = "official")\n'
        "  cat_to_name.json                    (optional: other class names)\n"
        "  split_zhou_OxfordFlowers.json       (optional: CoOp's split)"
    ),
    how_to_get=(
        "1. Download 102flowers.tgz, imagelabels.mat and setid.mat from "
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/.\n"
        "2. Unpack 102flowers.tgz into data/oxford_flowers/ (it makes jpg/), and put the .mat files beside jpg/.\n"
        "3. For CoOp's split, put split_zhou_OxfordFlowers.json (https://github.com/KaiyangZhou/CoOp, DATASETS.md) "
        "beside them."
    ),
    torchvision="Flowers102",
)
SPLIT_FILE = "split_zhou_OxfordFlowers.json"
NAMES = (
    "pink primrose", "hard-leaved pocket orchid", "canterbury bells", "sweet pea", "english marigold", "tiger lily",
    "moon orchid", "bird of paradise", "monkshood", "globe thistle", "snapdragon", "colt's foot", "king protea",
    "spear thistle", "yellow iris", "globe-flower", "purple coneflower", "peruvian lily", "balloon flower",
    "giant white arum lily", "fire lily", "pincushion flower", "fritillary", "red ginger", "grape hyacinth",
    "corn poppy", "prince of wales feathers", "stemless gentian", "artichoke", "sweet william", "carnation",
    "garden phlox", "love in the mist", "mexican aster", "alpine sea holly", "ruby-lipped cattleya", "cape flower",
    "great masterwort", "siam tulip", "lenten rose", "barbeton daisy", "daffodil", "sword lily", "poinsettia",
    "bolero deep blue", "wallflower", "marigold", "buttercup", "oxeye daisy", "common dandelion", "petunia",
    "wild pansy", "primula", "sunflower", "pelargonium", "bishop of llandaff", "gaura", "geranium", "orange dahlia",
    "pink-yellow dahlia?", "cautleya spicata", "japanese anemone", "black-eyed susan", "silverbush",
    "californian poppy", "osteospermum", "spring crocus", "bearded iris", "windflower", "tree poppy", "gazania",
    "azalea", "water lily", "rose", "thorn apple", "morning glory", "passion flower", "lotus", "toad lily",
    "anthurium", "frangipani", "clematis", "hibiscus", "columbine", "desert-rose", "tree mallow", "magnolia",
    "cyclamen", "watercress", "canna lily", "hippeastrum", "bee balm", "ball moss", "foxglove", "bougainvillea",
    "camellia", "mallow", "mexican petunia", "bromelia", "blanket flower", "trumpet creeper", "blackberry lily",
)  # fmt: skip
"""By label; the file of labels has numbers only. These are the names of the published experiments, "?" included."""


@DATASETS.register("oxford_flowers")
@dataclass(frozen=True, kw_only=True)
class OxfordFlowers(OnDisk):
    """Oxford Flowers 102: 102 classes, 8,189 images. Split: CoOp's file, else 50/20/30 per class; or the authors'."""

    about: ClassVar[About] = ABOUT
    split: Literal["coop", "official"] = "coop"
    """"coop": CoOp's split file where it lies beside the data, else its sizes. "official": the authors' setid.mat."""

    def load(self) -> Dataset:
        """List the images; nothing is decoded yet."""
        home = self.home()
        listing = coop_split(self, SPLIT_FILE) if self.split == "coop" else None
        if listing is None:
            labels = _read_mat(home / "imagelabels.mat", "labels") - 1
            if labels.min() != 0 or labels.max() != len(NAMES) - 1:
                raise DataError(f"{home / 'imagelabels.mat'} must have labels from 1 to {len(NAMES)}. Get it again.")
            listing = self._official(home, labels) if self.split == "official" else _coop_sizes(home, labels)
        return image_dataset(self, "jpg", listing)

    def _official(self, home: Path, labels: np.ndarray) -> Listing:
        path = home / "setid.mat"
        if not path.exists():
            raise missing_file(path, Path(self.root), ABOUT)
        examples = [
            Example(f"image_{number:05d}.jpg", int(labels[number - 1]), split)
            for key, split in (("trnid", "train"), ("valid", "validation"), ("tstid", "test"))
            for number in _read_mat(path, key).tolist()
        ]
        return Listing(class_names=_names(home), examples=examples, split_source="the authors' setid.mat")


def _coop_sizes(home: Path, labels: np.ndarray) -> Listing:
    examples = [Example(f"image_{index + 1:05d}.jpg", int(label)) for index, label in enumerate(labels)]
    dealt = split_per_class(examples, NAMES, ABOUT.name)
    return Listing(class_names=_names(home), examples=dealt, split_source=COOP_RULE)


def _names(home: Path) -> tuple[str, ...]:
    """Return the class names: those of cat_to_name.json if it is there."""
    path = home / "cat_to_name.json"
    if not path.exists():
        return NAMES
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
        return tuple(names[str(label + 1)] for label in range(len(NAMES)))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'{path} must name the classes "1" to "{len(NAMES)}" ({error}). Get it again.') from error


def _read_mat(path: Path, key: str) -> np.ndarray:
    from scipy.io import loadmat  # half a second to import

    try:
        return np.asarray(loadmat(path)[key]).reshape(-1).astype(np.int64)
    except Exception as error:  # a damaged file can raise anything
        raise DataError(f"{path} is damaged ({error}). Get it again.") from error
