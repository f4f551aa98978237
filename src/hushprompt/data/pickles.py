"""Reads the pickles in which some data sets come (CIFAR, FedBN's lists) without running what a pickle may ask for.

A pickle can name any function to call. Here only lists, numbers, texts and numpy arrays come through.
"""

from __future__ import annotations

import codecs
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hushprompt.data.listing import Example
from hushprompt.errors import DataError

_RECONSTRUCT = np.zeros(0).__reduce__()[0]
_SCALAR = np.float64(0).__reduce__()[0]
ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _RECONSTRUCT for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _SCALAR for core in ("core", "_core")},
}
"""By module and name, as pickles of Python 2 and 3, numpy 1 and 2 spell them."""


class PlainUnpickler(pickle.Unpickler):
    """Refuses every name that is not in `ALLOWED`."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle may call."""
        if (module, name) not in ALLOWED:
            raise DataError(f"it asks for {module}.{name}")
        return ALLOWED[module, name]


def load(path: Path, encoding: str = "ASCII") -> Any:
    """Read a pickle of plain values and arrays.

    Args:
        path: the file.
        encoding: of byte strings in pickles of Python 2; "bytes" keeps them as they are.

    Raises:
        DataError: the file is cut off, damaged, or asks for anything but plain values.
    """
    try:
        with path.open("rb") as file:
            return PlainUnpickler(file, encoding=encoding).load()
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(
            f"{path} is not a pickle of plain values ({type(error).__name__}: {error}). Get it again."
        ) from error


def has_lists(home: Path, domains: Sequence[str]) -> bool:
    """Tell whether all of FedBN's lists are there."""
    return all((home / f"{domain}_{split}.pkl").exists() for domain in domains for split in ("train", "test"))


def read_lists(home: Path, domains: Sequence[str], classes: Sequence[str]) -> list[Example]:
    """Read FedBN's lists, `<domain>_train.pkl` and `<domain>_test.pkl` of every domain: pairs of paths and class names.

    The papers that use them read the class names into a set, so that the order of the prompts changed from run to run;
    here it is a list, in FedBN's order.

    Args:
        home: folder of the lists, with a folder for each domain.
        domains: in domain order.
        classes: as the lists spell them, in label order.
    """
    examples = []
    for domain, folder in enumerate(domains):
        for split in ("train", "test"):
            path = home / f"{folder}_{split}.pkl"
            content = load(path)
            try:
                images, words = content
                for image, word in zip(images, words, strict=True):
                    name = _below(str(image), folder)
                    examples.append(Example(name, classes.index(str(word)), split, domain))
            except (TypeError, ValueError) as error:
                raise DataError(f"{path} is not a pair of paths and class names ({error}). Get it again.") from error
    return examples


def _below(path: str, folder: str) -> str:
    """Return the part of a path from a folder on; what comes before depends on who made the list."""
    parts = path.replace("\\", "/").split("/")
    return "/".join(parts[parts.index(folder) :])
