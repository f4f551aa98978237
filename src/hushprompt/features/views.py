"""Augmented views of an image: a random box of it, resized to a square, flipped half of the time.

Source: Szegedy et al. 2015 (arXiv:1409.4842), section 6, in the form that CLIP's prompt learners train with (CoOp, Zhou
et al. 2022, arXiv:2109.01134; DP-FPL): area uniform in [min_scale, 1], aspect ratio log-uniform in [3/4, 4/3].
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image

MAX_RATIO = 4 / 3
"""Largest width over height of a box; the smallest is its inverse."""
NUM_TRIES = 10
"""Boxes drawn until one fits; then the largest central box is taken."""


def random_view(
    image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator, *, min_scale: float, size: int
) -> UInt8[np.ndarray, "s s 3"]:
    """Return one view of an image, to be preprocessed by the backbone like any other image.

    Args:
        image: [h, w, 3] of any size.
        rng: stream of this view alone.
        min_scale: smallest share of the image's area that a view shows, in (0, 1].
        size: side s of the view in pixels.
    """
    top, left, height, width = random_box(image.shape[0], image.shape[1], rng, min_scale)
    box = image[top : top + height, left : left + width]
    view = np.asarray(Image.fromarray(box).resize((size, size), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(view[:, ::-1]) if rng.random() < 0.5 else view


def random_box(height: int, width: int, rng: np.random.Generator, min_scale: float) -> tuple[int, int, int, int]:
    """Draw top, left, height and width of a box inside an image of `height` x `width` pixels."""
    for _ in range(NUM_TRIES):
        area = height * width * rng.uniform(min_scale, 1.0)
        ratio = math.exp(rng.uniform(-math.log(MAX_RATIO), math.log(MAX_RATIO)))
        box_height, box_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = rng.integers(height - box_height + 1), rng.integers(width - box_width + 1)
            return int(top), int(left), box_height, box_width
    box_height = min(height, math.ceil(width * MAX_RATIO))
    box_width = min(width, math.ceil(height * MAX_RATIO))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width
