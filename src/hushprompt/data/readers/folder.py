"""Any folder of class folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hushprompt.data.base import Dataset
from hushprompt.data.class_folders import is_media, subfolders, walk
from hushprompt.data.decoding import media_of
from hushprompt.data.findings import finding
from hushprompt.data.listing import Files
from hushprompt.data.readers.base import Found, OwnData, plain, required
from hushprompt.data.splitting import SPLIT_WORDS
from hushprompt.errors import DataError
from hushprompt.registry import DATASETS
from hushprompt.words import first_of

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
        are_splits = self._are_splits(root, folders)
        walked = walk(root)
        by_class = grouped(walked.media, 2 if are_splits else 1)
        found, used = [], set()
        for split in folders if are_splits else [""]:
            names = subfolders(root / split) if split else folders
            files = {name: by_class.get(f"{split}/{name}" if split else name, []) for name in names}
            self._check_layout(root / split, files)
            for name, paths in files.items():
                found += [Found(path, name, split or None) for path in paths]
                used.update(paths)
        if not found:
            raise DataError(f"{root} has no class folders. Expected: {LAYOUTS}.")
        names = [one.name for one in found]
        outside = "Images or sounds lie in no class folder and are no examples"
        findings = [*walked.findings(), *finding("no_class", outside, set(walked.media) - used)]
        media = media_of(names, self.sampling_rate, str(root))
        return self.dataset("folder", root, found, Files(root, names), media, findings=findings)

    def _are_splits(self, root: Path, folders: Sequence[str]) -> bool:
        """Tell whether the folders are the splits; DataError where some are and some are not."""
        others = [name for name in folders if name.lower() not in SPLIT_WORDS]
        words = [name for name in folders if name.lower() in SPLIT_WORDS]
        if not words or self._names_all(folders):
            return False
        are_several = len({SPLIT_WORDS[name.lower()] for name in words}) > 1
        if others and (are_several or any(_holds_folders_alone(root / name) for name in words)):
            raise DataError(
                f"{root} has folders that are called like splits ({', '.join(words)}), and others ({_some(others)}). "
                f"If the former are splits, move the latter out of {root}. If all are classes, name all of them in "
                "data.classes."
            )
        return not others

    def _check_layout(self, folder: Path, files: Mapping[str, Sequence[str]]) -> None:
        """Raise DataError where class folders do not look like those of classes, and data.classes does not say so.

        Args:
            folder: what they lie in.
            files: of each class folder, as paths below the data set's.
        """
        empty = [name for name, paths in files.items() if not paths]
        if empty:
            raise DataError(
                f"The class folder {folder / empty[0]} is empty, or all in it are links to other class folders. Remove "
                "it or fill it."
            )
        if not files or self._names_all(files):
            return
        inner = [{path.split(f"{name}/", 1)[1].partition("/")[0] for path in paths} for name, paths in files.items()]
        name = next(iter(files))
        for class_folder, below in zip(files, inner, strict=True):
            if len({SPLIT_WORDS[word.lower()] for word in below if word.lower() in SPLIT_WORDS}) > 1:
                raise DataError(
                    f"{folder / class_folder} has the folders {_some(below)}, which are called like splits. Expected: "
                    f"{LAYOUTS}. Set data.root to the folder that has them, or move splits above classes. If they are "
                    "no splits, name all classes in data.classes."
                )
        counts = Counter(below for each in inner for below in each)
        are_shared = len(inner) == 1 or max(counts.values()) > 1
        if len(counts) > 1 and are_shared and not any(map(is_media, counts)):
            raise DataError(
                f"In {folder} there are only folders ({_some(counts)}) in {_some(files)}. If these are the classes, "
                f"set data.root to the folder that has them, such as {folder / name}, or list the files in a table "
                f"(data.name=table) with a column client or domain. If {_some(files)} are the classes, name them in "
                "data.classes."
            )

    def _names_all(self, folders: Iterable[str]) -> bool:
        """Tell whether data.classes names all of these folders, so that nothing about them need be guessed."""
        keys = set(map(plain, self.wanted()))
        return bool(keys) and all(plain(name) in keys for name in folders)


def grouped(paths: Iterable[str], depth: int) -> dict[str, list[str]]:
    """Return paths by their first `depth` folders; those with fewer folders stand under "".

    >>> grouped(["a/1.jpg", "a/b/2.jpg", "3.jpg"], 1)
    {'a': ['a/1.jpg', 'a/b/2.jpg'], '': ['3.jpg']}
    """
    groups: dict[str, list[str]] = {}
    for path in paths:
        parts = path.split("/")
        groups.setdefault("/".join(parts[:depth]) if len(parts) > depth else "", []).append(path)
    return groups


def _holds_folders_alone(folder: Path) -> bool:
    """Tell whether there are folders in a folder, and no images or sounds."""
    return bool(subfolders(folder)) and not any(is_media(path.name) for path in folder.iterdir())


def _some(names: Iterable[str]) -> str:
    return first_of(sorted(names), 5)
