"""Where a backbone's towers run, in which precision, and in how much memory: the one place that decides.

The precision of the towers changes features and gradients, so it is a field of the backbone's section, part of a run's
identity and of the key of cached features. The device changes results by rounding alone, so it is a field of `runtime`.
Prompts, losses, clipping and noise are float32 whatever the towers are: what enters a tower is cast at its door, what
leaves it is cast back.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from hushprompt.errors import ConfigError
from hushprompt.models.base import Model

Precision = Literal["float32", "bfloat16", "float16"]
"""Of the towers' weights and arithmetic. The lower ones pay only where the hardware has units for them."""
Device = Literal["auto", "cpu", "cuda"]
"""Where the towers run: "auto" takes a GPU if there is one and the backbone can use it."""


def place(backbone: Model, wanted: Device) -> str:
    """Move a backbone to the device that is wanted, and return the device's name.

    Raises:
        ConfigError: "cuda" is wanted, but there is no GPU or the backbone cannot use one.
    """
    has_gpu, can_move = torch.cuda.is_available(), backbone.capabilities.runs_on_gpu
    if wanted == "cpu" or (wanted == "auto" and not (has_gpu and can_move)):
        return "cpu"
    if not has_gpu:
        raise ConfigError('runtime.device = "cuda", but torch sees no GPU. Use "auto" or "cpu".')
    if not can_move:
        raise ConfigError('runtime.device = "cuda", but this backbone runs on the CPU only. Use "auto" or "cpu".')
    backbone.to("cuda")
    load_linear_algebra()
    return "cuda"


def load_linear_algebra() -> None:
    """Make torch load its linear algebra for the GPU: it does at the first call, and not safely in several threads."""
    torch.linalg.qr(torch.eye(2, device="cuda"))


def step_memory_mb(wanted: int, device: str) -> int:
    """Return the MB that the backward passes of one step may take; 0 is what suits the device."""
    return wanted or (160 if device == "cpu" else 4096)


def lowered(network: nn.Module, precision: Precision) -> torch.dtype:
    """Cast a network's weights and buffers, in place, and return their dtype."""
    dtype: torch.dtype = getattr(torch, precision)
    network.to(dtype)
    return dtype


def precision_settings(precision: Precision) -> list[dict[str, Any]]:
    """Return what a backbone's fingerprint says of the precision: nothing of float32, the rule."""
    return [] if precision == "float32" else [{"precision": precision}]
