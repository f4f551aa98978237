"""An image tower that can be written to a file, and how Pillow and NumPy make an image ready for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hushprompt.errors import ConfigError

Rounding = Literal["down", "nearest"]
"""How a fraction of a pixel is rounded; a half goes to the even number."""


@dataclass(frozen=True, kw_only=True)
class PixelRecipe:
    """From an RGB image to pixels: resized by Pillow, cut to its center, scaled to [0, 1], standardized."""

    short_side: int | None = None
    """Pixels that the shorter side is resized to, with the proportions kept; None: both sides go to `size`."""
    size: tuple[int, int]
    """Width and height of the center that is kept."""
    interpolation: str = "bicubic"
    """One of Pillow's, in lower case."""
    long_side_rounding: Rounding = "down"
    crop_rounding: Rounding = "down"
    """Of what is cut off left and above."""
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    """Of each color, taken off."""
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    """Of each color, by which the rest is divided."""


class TowerGraph(nn.Module):
    """An image tower from pixels to unit-norm features, and nothing else of its model."""

    def __init__(self, encode: Callable[[Tensor], Tensor], *parts: nn.Module) -> None:
        """Take a tower.

        Args:
            encode: from pixels [n, 3, h, w] to features [n, d], of any norm.
            parts: the modules whose weights it uses.
        """
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self._encode = encode

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Encode pixels that the recipe has made ready."""
        return F.normalize(self._encode(pixels).float(), dim=-1)


class ImageGraph(NamedTuple):
    """What an image tower is without its library."""

    tower: TowerGraph
    recipe: PixelRecipe


def no_graph(why: str) -> ConfigError:
    """Return the error for an image tower that cannot be written so."""
    return ConfigError(f"This backbone's image tower cannot be exported: {why}.")
