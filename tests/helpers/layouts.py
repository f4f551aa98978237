"""Writes tiny files in the true layout of each data set."""

import io
import tarfile

import numpy as np
from PIL import Image


def color_of(number):
    """A color that tells example `number` from the others, and survives JPEG roughly."""
    return (number * 37) % 256, (number * 91) % 256, (number * 53) % 256


def encoded(number, kind="PNG", size=(6, 4)):
    """Bytes of a plain image of w x h pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", size, color_of(number)).save(buffer, kind, quality=95)
    return buffer.getvalue()


def image(path, number=0, size=(6, 4)):
    """Write a plain image; its ending decides the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(number, "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG", size))
    return path


def images(folder, classes, count, start=0):
    """Write `count` images into a folder of each class, from color `start` on."""
    for label, name in enumerate(classes):
        for index in range(count):
            image(folder / name / f"image_{index + 1:04d}.jpg", start + label * count + index)


def wav(path, frequency=440.0, seconds=0.1, rate=44100, channels=1):
    """Write a tone."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    tone = np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate) / 2
    soundfile.write(path, np.repeat(tone[:, None], channels, axis=1), rate)
    return path


def tar(path, members):
    """Write a tar of name: bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))
    return path


def names(split):
    """Names of a split's examples, in order."""
    source = split.read.source
    return [source.names[row] for row in split.read.rows]


def is_color(pixels, number, tolerance=6):
    """Tell whether decoded pixels are those of example `number`."""
    return np.abs(pixels.astype(int) - color_of(number)).max() <= tolerance
