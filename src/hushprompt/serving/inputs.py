"""From what a user has, files, bytes, images in memory, to the arrays that a backbone encodes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hushprompt.data.decoding import AUDIO_SUFFIXES, DECODER_ERRORS, IMAGE_SUFFIXES, Media, rgb, suffix
from hushprompt.errors import ConfigError, DataError, sentence_of
from hushprompt.models.base import Capabilities

STANDARD_INPUT = "-"
"""Instead of a path: the bytes of one example come from standard input."""
SUFFIXES = {"image": IMAGE_SUFFIXES, "audio": AUDIO_SUFFIXES}


def media_for(capabilities: Capabilities) -> Media:
    """Return what a backbone takes, as bytes are decoded to it."""
    return Media(modality=capabilities.modality, sampling_rate=capabilities.sampling_rate)


def as_array(example: Any, media: Media, feature_dim: int) -> np.ndarray:
    """Return one example as a backbone takes it.

    Args:
        example: the path of a file, its bytes, a PIL image, or an array: uint8 [h, w, 3] or [h, w] for an image, float
            [samples] at the backbone's sampling rate for a sound, float [d] for a feature.
        media: what the backbone takes.
        feature_dim: width d of a feature.

    Raises:
        DataError: it cannot be read, or is not what the backbone takes.
    """
    if isinstance(example, (str, Path)):
        try:
            content = read(example)
        except OSError as error:
            raise DataError(sentence_of(error)) from error
        return media.decode(content, str(example))
    if isinstance(example, bytes):
        return media.decode(example, "given as bytes")
    if isinstance(example, Image.Image) and media.modality == "image":
        try:
            return rgb(example, "given as a PIL image")
        except DECODER_ERRORS as error:
            raise DataError(f"The image given as a PIL image cannot be read ({error}). Take it out.") from error
    return _checked(np.asarray(example), media, feature_dim)


def read(path: str | Path) -> bytes:
    """Return the bytes of a file, or of standard input for "-"."""
    return sys.stdin.buffer.read() if str(path) == STANDARD_INPUT else Path(path).expanduser().read_bytes()


def _checked(array: np.ndarray, media: Media, feature_dim: int) -> np.ndarray:
    """Return an array that a backbone takes; DataError says what it takes."""
    if media.modality == "image":
        if array.dtype == np.uint8 and array.ndim == 2:
            array = np.repeat(array[:, :, None], 3, axis=2)
        is_right, wanted = array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3, "uint8 [h, w, 3]"
    else:
        array, width = _float32(array), feature_dim if media.modality == "features" else None
        is_right = array.ndim == 1 and width in (None, len(array)) and np.isfinite(array).all()
        wanted = "finite floats " + (f"[{width}]" if width else f"[samples], {media.sampling_rate} a second")
    if not is_right or not array.size:
        raise DataError(
            f"An example of type {array.dtype} and shape {list(array.shape)} is not what this backbone takes: "
            f"{media.modality}, as {wanted}. Or give a path, bytes, or, for an image, a PIL image."
        )
    return np.ascontiguousarray(array)


def _float32(array: np.ndarray) -> np.ndarray:
    """Return real numbers as float32; anything else as it is, to be refused."""
    return array.astype(np.float32) if np.issubdtype(array.dtype, np.floating) else array[None][None]


def find_files(paths: Sequence[str | Path], modality: str, *, recursive: bool = False) -> list[str]:
    """Return the files to be read, in order: each that is named, and of each folder those of the modality, sorted.

    Hidden files are left out, and files in folders of a folder too unless `recursive` says otherwise.

    Raises:
        ConfigError: nothing is named, or examples of this modality are no files.
        DataError: a folder has no such file.
    """
    if modality not in SUFFIXES:
        raise ConfigError(
            "This prompt's backbone takes features, not files of images. Give arrays from Python, or a run with "
            "--split, or load the prompt with the backbone that made the features."
        )
    if not paths:
        raise ConfigError("Say what to predict: files, folders, - for standard input, or a run with --split test.")
    return [found for path in paths for found in _files_of(path, SUFFIXES[modality], recursive)]


def _files_of(path: str | Path, suffixes: frozenset[str], recursive: bool) -> list[str]:
    """Return the files that one argument stands for."""
    if str(path) == STANDARD_INPUT:
        return [STANDARD_INPUT]
    place = Path(path).expanduser()
    if not place.is_dir():
        return [str(place)]  # one that is missing is told in its line
    inside = place.rglob("*") if recursive else place.iterdir()
    found = sorted(
        str(each) for each in inside
        if suffix(each.name) in suffixes and not each.is_dir()
        and not any(part.startswith(".") for part in each.relative_to(place).parts)
    )  # fmt: skip
    if not found:
        more = "" if recursive else ", and folders within it are left out without --recursive"
        raise DataError(f"The folder {path} has no file that ends in {', '.join(sorted(suffixes))}{more}.")
    return found
