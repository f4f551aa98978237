"""The embedded data set: drawings of 100 everyday things by several vendors, openly licensed (assets/CREDITS.md)."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from hushprompt.data.base import Dataset, HeldByClients, Split
from hushprompt.errors import DataError
from hushprompt.registry import DATASETS


@DATASETS.register("emoji100")
@dataclass(frozen=True, kw_only=True)
class Emoji100(HeldByClients):
    """The `data` section of the embedded data set: nothing to set. The domain of an image is its vendor."""

    is_public: ClassVar[bool] = True
    is_embedded: ClassVar[bool] = True
    """The package has it in itself: no file that a config names is read, and nothing is fetched."""

    def load(self) -> Dataset:
        """Read the package's file; nothing is decoded yet."""
        with resources.as_file(resources.files("hushprompt") / "assets" / "emoji100.npz") as path:
            return read_npz(path)


@dataclass(frozen=True)
class EncodedImages:
    """WebP images end to end, decoded on demand."""

    data: np.ndarray = field(repr=False)
    """Bytes of all images of the file."""
    starts: np.ndarray
    ends: np.ndarray
    path: Path
    """Named in error messages."""

    def __call__(self, indices: np.ndarray) -> list[np.ndarray]:
        """Return uint8 images [64, 64, 3]."""
        images = []
        for index in indices:
            blob = self.data[self.starts[index] : self.ends[index]].tobytes()
            try:
                images.append(np.asarray(Image.open(io.BytesIO(blob)).convert("RGB")))
            except (UnidentifiedImageError, OSError) as error:
                raise DataError(
                    f"Image {index} in {self.path} is damaged ({error}). Install the package again."
                ) from error
        return images


def read_npz(path: Path) -> Dataset:
    """Read a file of the embedded layout.

    The file has `data` (uint8, WebP images end to end), `offsets` (int64, one more than images), `label`, `split`,
    `vendor` (uint8), and `meta`: JSON with `names`, `vendors` and `splits` in the order of their codes.

    Raises:
        DataError: the file is missing or not of that layout.
    """
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in ("data", "offsets", "label", "split", "vendor", "meta")}
        meta = json.loads(arrays["meta"].tobytes())
        names, vendors, split_names = tuple(meta["names"]), tuple(meta["vendors"]), list(meta["splits"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"The data file {path} is missing or damaged ({error}). Install the package again.") from error
    if len(arrays["offsets"]) != len(arrays["label"]) + 1 or arrays["offsets"][-1] != len(arrays["data"]):
        raise DataError(f"The data file {path} is cut off or inconsistent. Install the package again.")
    splits = {}
    for code, split_name in enumerate(split_names):
        chosen = np.flatnonzero(arrays["split"] == code)
        starts, ends = arrays["offsets"][chosen], arrays["offsets"][chosen + 1]
        digest = hashlib.sha256()
        for start, end in zip(starts, ends, strict=True):
            digest.update(arrays["data"][start:end].tobytes())
        splits[split_name] = Split(
            labels=arrays["label"][chosen].astype(np.int64),
            domains=arrays["vendor"][chosen].astype(np.int64),
            read=EncodedImages(arrays["data"], starts, ends, path),
            fingerprint=digest.hexdigest(),
        )
    return Dataset(
        name="emoji100",
        class_names=names,
        domain_names=vendors,
        splits=splits,
        citation="emoji-100, embedded in hushprompt; drawings by the vendors named in assets/CREDITS.md.",
        license="Apache-2.0, MIT and CC-BY-4.0, by vendor; see assets/CREDITS.md.",
    )
