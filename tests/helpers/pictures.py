"""Pictures as files."""

import numpy as np
from PIL import Image


def pictures(folder, count=3):
    """Write smooth color pictures, wide and tall; return their paths."""
    rng, paths = np.random.default_rng(0), []
    for index in range(count):
        noise = Image.fromarray(rng.integers(256, size=(7, 7, 3), dtype=np.uint8))
        noise.resize((40 + 31 * index, 70 - 13 * index)).save(folder / f"{index}.png")
        paths.append(folder / f"{index}.png")
    return paths
