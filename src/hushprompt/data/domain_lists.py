"""FedBN's lists of DomainNet and Office-Caltech10: for each domain the images of ten classes, train and test.

They are pickles of (paths, class names). The papers that use them read the class names into a set, so that the order of
the prompts changed from run to run; here it is a list, in FedBN's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hushprompt.data import pickles
from hushprompt.data.listing import Example
from hushprompt.errors import DataError


def has_lists(home: Path, domains: Sequence[str]) -> bool:
    """Tell whether all of FedBN's lists are there."""
    return all((home / f"{domain}_{split}.pkl").exists() for domain in domains for split in ("train", "test"))


def read_lists(home: Path, domains: Sequence[str], classes: Sequence[str]) -> list[Example]:
    """Read `<domain>_train.pkl` and `<domain>_test.pkl` of every domain.

    Args:
        home: folder of the lists, with a folder for each domain.
        domains: in domain order.
        classes: as the lists spell them, in label order.
    """
    examples = []
    for domain, folder in enumerate(domains):
        for split in ("train", "test"):
            path = home / f"{folder}_{split}.pkl"
            content = pickles.load(path)
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
