"""Any folder of class folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hushprompt.data.base import Dataset
from hushprompt.data.class_folders import media_files, subfolders
from hushprompt.data.decoding import media_of
from hushprompt.data.listing import Files
from hushprompt.data.readers.base import Found, OwnData, required
from hushprompt.data.splitting import SPLIT_WORDS
from hushprompt.errors import DataError
from hushprompt.registry import DATASETS

LAYOUTS = "ROOT/CLASS/any.jpg, or ROOT/train/CLASS/any.jpg and ROOT/test/CLASS/any.jpg (and validation, if you like)"


@DATASETS.register("folder")
@dataclass(frozen=True, kw_only=True)
class Folder(OwnData):
    """Your own images or sounds: a folder with one folder for each class, in train/test folders or not."""

    root: str = ""
    """The folder. If all folders in it are called train, validation (val) or test, they are the splits."""

    def load(self) -> Dataset:
        """List the files; nothing is decoded yet."""
        required("a folder", root=self.root)
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise DataError(f"data.root {root} is not a folder. Expected: {LAYOUTS}.")
        folders = subfolders(root)
        are_splits = bool(folders) and all(name.lower() in SPLIT_WORDS for name in folders)
        found = []
        for split in folders if are_splits else [""]:
            for class_folder in subfolders(root / split):
                files = media_files(root / split / class_folder)
                if not files:
                    raise DataError(f"The class folder {root / split / class_folder} is empty. Remove it or fill it.")
                place = f"{split}/{class_folder}" if split else class_folder
                found += [Found(f"{place}/{file}", class_folder, split or None) for file in files]
        if not found:
            raise DataError(f"{root} has no class folders. Expected: {LAYOUTS}.")
        names = [one.name for one in found]
        return self.dataset("folder", root, found, Files(root, names), media_of(names, self.sampling_rate, str(root)))
