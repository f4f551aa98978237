"""Sizes are read from headers, before anything is decoded."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from helpers.served import bomb, image, sound
from hushprompt.serving.content import MOST_SCANS, size_of
from hushprompt.serving.limits import RefusedError, ServingLimits
from hushprompt.serving.replies import VALUES_AT_ONCE, Question, _parts

LIMITS = ServingLimits()
EXIF = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x00\x00"


@pytest.mark.parametrize(
    "data",
    [
        image("PNG", (30, 7)), image("JPEG", (30, 7)), image("WEBP", (30, 7)), image("WEBP", (30, 7), lossless=True),
        image("JPEG", (30, 7), progressive=True), image("WEBP", (30, 7), exif=EXIF),
    ],
    ids=["png", "jpeg", "webp", "lossless webp", "progressive jpeg", "extended webp"],
)  # fmt: skip
def test_the_size_is_that_of_the_decoded_image(data):
    assert size_of(data, "image", LIMITS) == 30 * 7 == np.prod(Image.open(io.BytesIO(data)).size)


def test_bombs_are_refused_by_their_headers():
    webp = bytearray(image("WEBP", (30, 7), lossless=True))
    webp[21:25] = struct.pack("<I", 0x0FFFFFFF)  # 16384 x 16384
    jpeg = bytearray(image("JPEG", (30, 7)))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    for data in (bomb(12_000), bytes(webp), bytes(jpeg)):
        with pytest.raises(RefusedError, match="are the most that are taken") as refused:
            size_of(data, "image", LIMITS)
        assert refused.value.status == 413


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (2, 101)])
def test_an_image_far_longer_than_wide_is_refused(size):
    buffer = io.BytesIO()
    Image.new("L", size).save(buffer, "PNG")
    with pytest.raises(RefusedError, match="more than 50 times the other") as refused:
        size_of(buffer.getvalue(), "image", LIMITS)
    assert refused.value.status == 413
    assert size_of(image("PNG", (1, 50)), "image", LIMITS) == 50


def png(*chunks):
    """Return a PNG of chunks, each a name and its content."""
    made = [struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


@pytest.mark.parametrize("size", [(13_000, 13_000), (4, 4)])
@pytest.mark.parametrize("at", [1, 2])
def test_a_png_with_a_second_header_is_refused(size, at):
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(20)))]
    assert size_of(png(*chunks, (b"IEND", b"")), "image", LIMITS) == 16
    chunks.insert(at, (b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)))
    with pytest.raises(RefusedError, match="no image") as refused:
        size_of(png(*chunks, (b"IEND", b"")), "image", LIMITS)
    assert refused.value.status == 415


def test_pillow_must_see_the_size_that_the_header_says(monkeypatch):
    monkeypatch.setattr("hushprompt.serving.content._webp_size", lambda data: (30, 8))
    with pytest.raises(RefusedError, match="no image"):
        size_of(image("WEBP", (30, 7)), "image", LIMITS)


def test_all_passes_of_a_jpeg_count():
    data = image("JPEG", (30, 7), progressive=True)
    passes = data.count(b"\xff\xda")
    assert passes > 3
    assert size_of(data, "image", ServingLimits(scanned_pixels=30 * 7 * passes)) == 30 * 7
    with pytest.raises(RefusedError, match="passes go over more than") as refused:
        size_of(data, "image", ServingLimits(scanned_pixels=30 * 7 * passes - 1))
    assert refused.value.status == 413


def test_a_jpeg_of_very_many_passes_is_refused():
    data = image("JPEG", (8, 8))
    with pytest.raises(RefusedError, match="no image") as refused:
        size_of(data + b"\xff\xda" * MOST_SCANS, "image", LIMITS)
    assert refused.value.status == 415


def test_a_sound_is_measured_by_its_header():
    assert size_of(sound(seconds=0.5), "audio", LIMITS) == 8000
    soundfile = pytest.importorskip("soundfile")
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((1000, 2)), 16_000, format="FLAC")
    assert size_of(buffer.getvalue(), "audio", LIMITS) == 2000
    endless = bytearray(buffer.getvalue())
    endless[21:26] = bytes([endless[21] | 0x0F]) + b"\xff" * 4  # STREAMINFO: 2**36 - 1 samples
    with pytest.raises(RefusedError, match="longer than 300 seconds"):
        size_of(bytes(endless), "audio", LIMITS)
    with pytest.raises(RefusedError, match="samples, and 1,000 are the most"):
        size_of(sound(), "audio", ServingLimits(values=1000))
    for other in (image(), b"OggS" + bytes(50), b"RIFF\x00\x00\x00\x00WAVE", b"fLaC"):
        with pytest.raises(RefusedError, match="no sound that can be read"):
            size_of(other, "audio", LIMITS)


def test_large_images_are_decoded_one_after_another():
    sizes = [VALUES_AT_ONCE, 1, 2, VALUES_AT_ONCE - 3, 5]
    parts = list(_parts([Question(b"", size) for size in sizes]))
    assert [[each.size for each in part] for part in parts] == [[sizes[0]], [1, 2, sizes[3]], [5]]
    assert list(_parts([])) == []
