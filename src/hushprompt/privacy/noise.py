"""The one place where privacy noise is drawn."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hushprompt import checks


def add_gaussian(value: Tensor, std: float, rng: np.random.Generator) -> Tensor:
    """Add independent N(0, std^2) to every entry.

    The draw is made in float64 on the CPU and rounded once to the dtype of `value`, so results do not depend on
    the device. A generator seeded from a run's seed makes a simulation repeatable and is not a release.

    Args:
        value: [*p] what is to be protected, float32 or wider.
        std: standard deviation, in the units of `value`; 0 adds nothing.
        rng: stream of its own for this release; never shared with another draw.

    Raises:
        ConfigError: `std` is negative, NaN or infinite.
        TypeError: `value` is narrower than float32.
    """
    checks.non_negative(noise_std=std)
    checks.finite(noise_std=std)
    if value.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"noise is added in float32 or wider, got {value.dtype}; convert the sum first.")
    if std == 0:
        return value
    noise = torch.from_numpy(rng.normal(0.0, std, size=tuple(value.shape)))
    return value + noise.to(dtype=value.dtype, device=value.device)
