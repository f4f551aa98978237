"""Caltech101 as prompt learning uses it: 100 classes, without the background and the second set of faces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hushprompt.data.base import Dataset
from hushprompt.data.class_folders import coop_dataset
from hushprompt.data.listing import About, OnDisk
from hushprompt.registry import DATASETS

ABOUT = About(
    name="caltech101",
    title="Caltech101",
    citation=(
        "L. Fei-Fei, R. Fergus, P. Perona. Learning Generative Visual Models from Few Training Examples: An "
        "Incremental Bayesian Approach Tested on 101 Object Categories. CVPR Workshop 2004. doi:10.22002/D1.20086"
    ),
    license="CC-BY-4.0",
    homepage="https://data.caltech.edu/records/mzrjq-6wc02",
    folders=("caltech-101", "caltech101"),
    needs=("101_ObjectCategories",),
    layout=(
        "caltech-101/                          (or caltech101/)\n"
        "  101_ObjectCategories/CLASS/image_0001.jpg\n"
        "  split_zhou_Caltech101.json          (optional: CoOp's split)"
    ),
    how_to_get=(
        "1. Download caltech-101.zip from https://data.caltech.edu/records/mzrjq-6wc02 and unpack it.\n"
        "2. Unpack 101_ObjectCategories.tar.gz, which is inside, into data/caltech-101/.\n"
        "3. For CoOp's split, put split_zhou_Caltech101.json (https://github.com/KaiyangZhou/CoOp, DATASETS.md) beside "
        "it."
    ),
    torchvision="Caltech101",
)
LEFT_OUT = frozenset({"BACKGROUND_Google", "Faces_easy"})
NAMES = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}
"""Folders whose class has another name in prompts."""


@DATASETS.register("caltech101")
@dataclass(frozen=True, kw_only=True)
class Caltech101(OnDisk):
    """Caltech101: 100 classes of objects, 8,242 images. Split: CoOp's file, else 50/20/30 per class."""

    about: ClassVar[About] = ABOUT

    def load(self) -> Dataset:
        """List the images; nothing is decoded yet."""
        return coop_dataset(
            self,
            images="101_ObjectCategories",
            split_file="split_zhou_Caltech101.json",
            num_classes=100,
            left_out=LEFT_OUT,
            names=NAMES,
        )
