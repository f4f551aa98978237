"""ESC-50: recordings of 50 everyday sounds, five seconds each."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hushprompt import checks
from hushprompt.data.base import Dataset
from hushprompt.data.decoding import Media
from hushprompt.data.listing import About, Example, Files, Listing, OnDisk, build
from hushprompt.errors import ConfigError, DataError
from hushprompt.registry import DATASETS

ABOUT = About(
    name="esc50",
    title="ESC-50",
    citation="K. J. Piczak. ESC: Dataset for Environmental Sound Classification. ACM Multimedia 2015.",
    license="CC-BY-NC-3.0",
    homepage="https://github.com/karolpiczak/ESC-50",
    folders=("ESC-50-master", "ESC-50"),
    needs=("audio", "meta/esc50.csv"),
    layout="ESC-50-master/                          (or ESC-50/)\n  audio/1-100032-A-0.wav\n  meta/esc50.csv",
    how_to_get=(
        "1. Download https://github.com/karolpiczak/ESC-50/archive/master.zip.\n"
        "2. Unpack it into data/ (it makes ESC-50-master/)."
    ),
)
NUM_CLASSES, NUM_FOLDS = 50, 5


@DATASETS.register("esc50")
@dataclass(frozen=True, kw_only=True)
class ESC50(OnDisk):
    """ESC-50: 50 classes of sounds, 2,000 recordings in five folds. Split: one of the authors' folds for test."""

    about: ClassVar[About] = ABOUT
    test_fold: int = 5
    """Fold from 1 to 5 that is for test; the published protocol averages over all five."""
    validation_fold: int = 0
    """Fold that is for choosing settings; 0: none, as published."""
    sampling_rate: int = 48000
    """Samples per second that the recordings (44,100) are resampled to; CLAP wants 48,000."""

    def __post_init__(self) -> None:
        checks.positive(sampling_rate=self.sampling_rate)
        checks.in_range(1, NUM_FOLDS, test_fold=self.test_fold)
        checks.in_range(0, NUM_FOLDS, validation_fold=self.validation_fold)
        if self.test_fold == self.validation_fold:
            raise ConfigError(f"test_fold and validation_fold must differ, got {self.test_fold} twice.")

    def load(self) -> Dataset:
        """List the recordings; nothing is decoded yet."""
        home = self.home()
        listing = self._read_table(home / "meta" / "esc50.csv")
        source = Files(home / "audio", [example.name for example in listing.examples])
        media = Media(modality="audio", sampling_rate=self.sampling_rate)
        return build(ABOUT, listing, source, media, self.on_unreadable)

    def _read_table(self, path: Path) -> Listing:
        """Read the authors' table: filename, fold, target (the label), category (its name), and more."""
        names: dict[int, str] = {}
        examples = []
        folds = {self.test_fold: "test", self.validation_fold: "validation"}
        try:
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    label = int(row["target"])
                    names[label] = row["category"].replace("_", " ")
                    examples.append(Example(row["filename"], label, folds.get(int(row["fold"]), "train")))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path} is missing or damaged ({error!r}). Get it again.") from error
        if sorted(names) != list(range(NUM_CLASSES)):
            raise DataError(f"{path} must have {NUM_CLASSES} classes, found {len(names)}. Get it again.")
        return Listing(
            class_names=tuple(names[label] for label in range(NUM_CLASSES)),
            examples=examples,
            split_source=f"the authors' folds; fold {self.test_fold} for test",
        )
