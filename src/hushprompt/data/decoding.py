"""From the bytes of a file to what a backbone takes: RGB images of any size, mono waveforms of one sampling rate.

Nothing is repaired: a file that is cut off or damaged is an error that names it. Pixels are those of the file; an
orientation tag is not applied, as in the published experiments on these data sets.
"""

from __future__ import annotations

import io
import math
import re
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hushprompt import extras
from hushprompt.data.base import Modality
from hushprompt.errors import DataError

IMAGE_SUFFIXES = frozenset({"bmp", "gif", "jpeg", "jpg", "pbm", "pgm", "png", "ppm", "tif", "tiff", "webp"})
AUDIO_SUFFIXES = frozenset({"aif", "aiff", "flac", "mp3", "ogg", "opus", "wav"})
DECODER_ERRORS = (OSError, ValueError, SyntaxError, IndexError, struct.error, Image.DecompressionBombError)
"""Exceptions of Pillow for damaged files, whatever their format."""
SIXTEEN_BITS = frozenset({"I;16", "I;16L", "I;16B"})
UNKNOWN_LENGTH = 0x7FFF0000
"""A WAV that was streamed has this length or more in its header; it is not cut off."""


@dataclass(frozen=True, kw_only=True)
class Media:
    """What the examples of a data set are."""

    modality: Modality = "image"
    sampling_rate: int | None = None
    """Samples per second of the decoded waveforms; None for images."""

    def decode(self, data: bytes, name: str) -> np.ndarray:
        """Return one example from its file's bytes; `name` is for the error message."""
        if self.sampling_rate is None:
            return decode_image(data, name)
        return decode_audio(data, name, self.sampling_rate)


@dataclass(frozen=True, kw_only=True)
class Vectors(Media):
    """Examples that are features already: float32 [d]."""

    modality: Modality = "features"

    def decode(self, data: bytes, name: str) -> np.ndarray:
        """Return one vector; DataError if it has no direction."""
        vector = np.frombuffer(data, "<f4")
        if not np.isfinite(vector).all() or not vector.any():
            what = "all zero" if np.isfinite(vector).all() else "NaN or infinite in float32"
            raise DataError(f"The embedding {name} is {what}. Make it again, or take it out.")
        return vector


def suffix(name: str) -> str:
    """Return the lower-case ending of a file name.

    >>> suffix("a/b.tar/C.JPG")
    'jpg'
    """
    return name.rpartition(".")[2].lower()


def media_of(names: list[str], sampling_rate: int, where: str) -> Media:
    """Tell from the files' endings whether they are images or sounds.

    Raises:
        DataError: they are both, neither, or none.
    """
    found = {suffix(name) for name in names}
    if not found:
        raise DataError(f"{where} has no example.")
    if found <= IMAGE_SUFFIXES:
        return Media()
    if found <= AUDIO_SUFFIXES:
        return Media(modality="audio", sampling_rate=sampling_rate)
    raise DataError(
        f"{where} must have files of one kind, images ({', '.join(sorted(IMAGE_SUFFIXES))}) or sounds "
        f"({', '.join(sorted(AUDIO_SUFFIXES))}); found: {', '.join(sorted(found))}."
    )


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Return the first frame of an image as uint8 RGB [h, w, 3]; 16-bit gray is scaled to 8 bits.

    Raises:
        DataError: the bytes are no image, cut off, or of a pixel type that has no one way to become 8 bits.
    """
    try:
        return rgb(Image.open(io.BytesIO(data)), name)
    except DECODER_ERRORS as error:
        raise DataError(f"The image {name} cannot be read ({_plain(error)}). Replace it or take it out.") from error


def rgb(image: Image.Image, name: str) -> np.ndarray:
    """Return an image of Pillow as uint8 RGB [h, w, 3], as `decode_image` does; what Pillow raises is not caught."""
    image.load()
    if not image.width or not image.height:
        raise DataError(f"The image {name} has no pixel. Replace it or take it out.")
    if image.mode in SIXTEEN_BITS:
        gray = (np.asarray(image).astype(np.uint32) // 257).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise DataError(f"The image {name} has pixels of type {image.mode}; save it with 8 or 16 bits a channel.")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def decode_audio(data: bytes, name: str, sampling_rate: int) -> np.ndarray:
    """Return a recording as a float32 waveform [samples]: channels averaged, resampled to `sampling_rate`.

    Raises:
        DataError: the bytes are no recording, empty, cut off, or not finite.
        ConfigError: the package that reads sounds is missing.
    """
    soundfile = extras.load("soundfile", "audio", "A sound")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            # libsndfile reads a cut-off WAV without a word, and notes it in its log alone.
            cut = re.search(r"^data : (\d+) \(should be \d+\)", file.extra_info, re.MULTILINE)
            if cut and int(cut[1]) < UNKNOWN_LENGTH:
                raise DataError(f"The recording {name} is cut off. Replace it or take it out.")
            rate, samples = file.samplerate, file.read(dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise DataError(f"The recording {name} cannot be read ({_plain(error)}). Replace it or take it out.") from error
    if not len(samples) or not np.isfinite(samples).all():
        raise DataError(f"The recording {name} is empty or has samples that are no numbers. Take it out.")
    return resample(samples.mean(axis=1), rate, sampling_rate)


def resample(waveform: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Return a waveform [samples] at another sampling rate, through a zero-phase low-pass filter."""
    if rate == new_rate:
        return np.ascontiguousarray(waveform, dtype=np.float32)
    from scipy.signal import resample_poly  # half a second to import, and needed for sounds alone

    shared = math.gcd(rate, new_rate)
    return np.asarray(resample_poly(waveform, new_rate // shared, rate // shared), dtype=np.float32)


def _plain(error: Exception) -> str:
    """Say what a decoder said, without the address of the memory it read."""
    return re.sub(r" ?<_io\.BytesIO[^>]*>", "", str(error)).strip().rstrip(".") or type(error).__name__
