"""Draw rendered images: a drawing on a random background, moved, turned, recolored, and sometimes damaged."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

COLORS = {
    "white": (1, 1, 1), "black": (0.05, 0.05, 0.05), "gray": (0.5, 0.5, 0.5), "red": (0.85, 0.2, 0.2),
    "green": (0.25, 0.65, 0.3), "blue": (0.25, 0.4, 0.85), "yellow": (0.95, 0.85, 0.3), "orange": (0.95, 0.6, 0.2),
    "purple": (0.55, 0.3, 0.7), "pink": (0.95, 0.6, 0.75), "brown": (0.5, 0.33, 0.2), "cyan": (0.3, 0.8, 0.85),
}  # fmt: skip
COLOR_NAMES = list(COLORS)
SIZE = 64
DAMAGE = {"gray": 0.10, "dark": 0.12, "bright": 0.08, "noisy": 0.15, "blurry": 0.15, "occluded": 0.10}
"""How often each damage is applied at strength 1."""


def render(drawings: Tensor, generator: torch.Generator, strength: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Render uint8 drawings [n, s, s, 4] to images [n, 3, 64, 64] in [0, 1].

    Args:
        drawings: RGBA.
        generator: of all randomness.
        strength: scales the frequency of damage and of recoloring.

    Returns:
        Images, and what was done to each: a boolean [n] per damage and view, the background's color and kind.
    """
    num = len(drawings)
    uniform = lambda low, high: torch.rand(num, generator=generator) * (high - low) + low  # noqa: E731
    scale = uniform(0.62, 1.12)
    angle = uniform(-18.0, 18.0) * math.pi / 180
    color, alpha = _place(drawings, scale, angle, uniform)
    mixing = torch.eye(3) + 0.12 * strength * torch.randn(num, 3, 3, generator=generator)
    color = torch.minimum(torch.einsum("nij,njhw->nihw", mixing, color).clamp(0, 1), alpha)
    background, color_index, kind = _background(num, generator)
    images = color + background * (1 - alpha)
    attributes = {name: torch.rand(num, generator=generator) < often * strength for name, often in DAMAGE.items()}
    images = _damage(images, attributes, generator, uniform)
    attributes.update(small=scale < 0.74, close=scale > 1.02, tilted=angle.abs() > 12 * math.pi / 180)
    attributes.update(background=color_index, is_textured=kind >= 0.7)
    return images.clamp(0, 1), attributes


def _place(drawings: Tensor, scale: Tensor, angle: Tensor, uniform) -> tuple[Tensor, Tensor]:
    """Scale, turn, flip and shift; give premultiplied color [n, 3, h, w] and alpha [n, 1, h, w]."""
    x = drawings.permute(0, 3, 1, 2).float() / 255
    x = torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], dim=1)
    aspect = torch.exp(uniform(-0.12, 0.12))
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    across, down = 1 / (scale * aspect), aspect / scale
    room = (1.12 - scale).clamp(min=0.05)
    rows = [
        torch.stack([flip * cosine * across, -sine * across, uniform(-1, 1) * room * across * 0.55], dim=1),
        torch.stack([flip * sine * down, cosine * down, uniform(-1, 1) * room * down * 0.55], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), [len(x), 4, SIZE, SIZE], align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return x[:, :3], x[:, 3:].clamp(0, 1)


def _background(num: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Make plain, gradient and textured backgrounds; give them, their color's index and a kind in [0, 1)."""
    colors = torch.tensor(list(COLORS.values()), dtype=torch.float32)
    index = torch.randint(len(colors), (num,), generator=generator)
    base = (colors[index] + 0.08 * torch.randn(num, 3, generator=generator)).clamp(0, 1)[:, :, None, None]
    base = base.expand(num, 3, SIZE, SIZE)
    kind = torch.rand(num, generator=generator)
    ramp = torch.linspace(-1, 1, SIZE)
    direction = torch.rand(num, generator=generator) * 2 * math.pi
    slope = torch.cos(direction)[:, None, None] * ramp + torch.sin(direction)[:, None, None] * ramp[:, None]
    gradient = base + 0.25 * slope[:, None] * torch.randn(num, 3, 1, 1, generator=generator)
    is_coarse = torch.rand(num, 1, 1, 1, generator=generator) < 0.5
    texture = base * 0.55 + 0.45 * torch.where(is_coarse, _clouds(num, 5, generator), _clouds(num, 14, generator))
    plain_or_gradient = torch.where((kind < 0.45)[:, None, None, None], base, gradient)
    return torch.where((kind < 0.7)[:, None, None, None], plain_or_gradient, texture).clamp(0, 1), index, kind


def _clouds(num: int, cells: int, generator: torch.Generator) -> Tensor:
    """Smooth color noise."""
    noise = torch.rand(num, 3, cells, cells, generator=generator)
    return F.interpolate(noise, size=(SIZE, SIZE), mode="bicubic", align_corners=False).clamp(0, 1)


def _damage(images: Tensor, attributes: dict[str, Tensor], generator: torch.Generator, uniform) -> Tensor:
    """Apply the chosen damages."""
    wide = lambda flags: flags[:, None, None, None]  # noqa: E731
    images = torch.where(wide(attributes["gray"]), images.mean(1, keepdim=True).expand_as(images), images)
    bright = torch.where(attributes["bright"], uniform(1.25, 1.6), uniform(0.85, 1.15))
    images = (images * wide(torch.where(attributes["dark"], uniform(0.3, 0.55), bright))).clamp(0, 1)
    blurred = attributes["blurry"]
    if blurred.any():
        images = images.clone()
        images[blurred] = _blur(images[blurred])
    level = torch.where(attributes["noisy"], uniform(0.1, 0.22), uniform(0, 0.03))
    images = images + wide(level) * torch.randn(images.shape, generator=generator)
    for index in attributes["occluded"].nonzero()[:, 0].tolist():
        width, height = torch.randint(16, 30, (2,), generator=generator).tolist()
        left = int(torch.randint(0, SIZE - width, (1,), generator=generator))
        top = int(torch.randint(0, SIZE - height, (1,), generator=generator))
        images[index, :, top : top + height, left : left + width] = torch.rand(3, 1, 1, generator=generator)
    return images


def _blur(images: Tensor) -> Tensor:
    """Binomial blur, twice."""
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    for _ in range(2):
        padded = F.pad(images.reshape(-1, 1, SIZE, SIZE), (2, 2, 2, 2), mode="replicate")
        rows = F.conv2d(padded, kernel.view(1, 1, 1, 5))
        images = F.conv2d(rows, kernel.view(1, 1, 5, 1)).reshape(-1, 3, SIZE, SIZE)
    return images
