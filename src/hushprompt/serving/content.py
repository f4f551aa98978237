"""What a body is, told by its content and before it is decoded: its format, and how large it will be."""

from __future__ import annotations

import io
import struct

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from hushprompt.data.base import Modality
from hushprompt.data.decoding import DECODER_ERRORS
from hushprompt.serving.limits import RefusedError, ServingLimits

FORMATS = {"image": "PNG, JPEG or WebP", "audio": "WAV or FLAC"}
JPEG, SCAN = b"\xff\xd8\xff", b"\xff\xda"
"""What a JPEG begins with, and each of its scans."""
MOST_SCANS = 100
"""Of a JPEG: each scan of a progressive one passes over all of its pixels."""
SAMPLING_RATES = (4_000, 384_000)
"""Samples per second; far outside, resampling would cost more than the sound."""


def size_of(data: bytes, modality: Modality, limits: ServingLimits) -> int:
    """Return the pixels of an image, or the samples of a sound; the bytes are not decoded.

    Raises:
        RefusedError: 415, it is of no format that is taken, or cut off; 413, it is too large or too long.
    """
    if modality == "image":
        return _pixels(data, limits)
    size = _samples(data, limits)
    _check(size, "samples", limits)
    return size


def passes(data: bytes) -> int:
    """Return how often decoding passes over all pixels: a JPEG's scans, or 1."""
    return max(1, data.count(SCAN)) if data.startswith(JPEG) else 1


def _check(size: int, what: str, limits: ServingLimits) -> None:
    """Raise RefusedError, 413, for more pixels or samples than are taken."""
    if size > limits.values:
        raise RefusedError(413, f"It has {size:,} {what}, and {limits.values:,} are the most that are taken.")


def _pixels(data: bytes, limits: ServingLimits) -> int:
    """Return width times height as the image's header has them, and as Pillow will take them.

    Pillow is asked last: it would first make room for a WebP of that size.
    """
    try:
        width, height = _header_size(data)
        _check(width * height, "pixels", limits)
        if max(width, height) > limits.aspect_ratio * min(width, height):  # a model resizes the short side, then crops
            raise RefusedError(413, f"One of its sides is more than {limits.aspect_ratio:g} times the other.")
        if width * height * passes(data) > limits.scanned_pixels:
            raise RefusedError(413, f"Its passes go over more than {limits.scanned_pixels:,} pixels in all.")
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            if image.size != (width, height):
                raise _unknown("image")
    except RefusedError:
        raise
    except Exception as error:  # whatever Pillow says of what is damaged
        raise _unknown("image") from error
    return width * height


def _header_size(data: bytes) -> tuple[int, int]:
    """Return width and height as the image's header has them."""
    if data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR" and not _has_second_header(data):
        width, height = struct.unpack(">II", data[16:24])
    elif data.startswith(JPEG) and passes(data) <= MOST_SCANS:
        width, height = JpegImageFile(io.BytesIO(data)).size
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        width, height = _webp_size(data)
    else:
        raise _unknown("image")
    if not width or not height:
        raise _unknown("image")
    return width, height


def _has_second_header(data: bytes) -> bool:
    """Whether a PNG has another IHDR, which Pillow would take instead of the first."""
    at = 8 + 12 + 13
    while at + 8 <= len(data):
        if data[at + 4 : at + 8] == b"IHDR":
            return True
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return False


def _webp_size(data: bytes) -> tuple[int, int]:
    """Return width and height. Source: RFC 9649, section 2.4 to 2.7."""
    if data[12:16] == b"VP8X":
        wide, high = (int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        return wide + 1, high + 1
    if data[12:16] == b"VP8L":
        (bits,) = struct.unpack("<I", data[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if data[12:16] == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        wide, high = struct.unpack("<HH", data[26:30])
        return wide & 0x3FFF, high & 0x3FFF
    raise _unknown("image")


def _samples(data: bytes, limits: ServingLimits) -> int:
    """Return the samples of all channels, as the sound's header has them."""
    import soundfile

    if not (data.startswith(b"fLaC") or (data.startswith(b"RIFF") and data[8:12] == b"WAVE")):
        raise _unknown("audio")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            frames, channels, rate = file.frames, file.channels, file.samplerate
    except (soundfile.SoundFileError, *DECODER_ERRORS) as error:
        raise _unknown("audio") from error
    if not SAMPLING_RATES[0] <= rate <= SAMPLING_RATES[1]:
        low, high = SAMPLING_RATES
        raise RefusedError(415, f"It has {rate:,} samples a second; {low:,} to {high:,} are taken.")
    if frames > limits.sound_seconds * rate:
        raise RefusedError(413, f"It is longer than {limits.sound_seconds:g} seconds.")
    return int(frames * channels)


def _unknown(modality: str) -> RefusedError:
    """Return the refusal of what is no image, or no sound."""
    what = "image" if modality == "image" else "sound"
    return RefusedError(415, f"This is no {what} that can be read. {FORMATS[modality]} is taken, told by its content.")
