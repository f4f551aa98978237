"""The network of the embedded model: an EfficientNet-Lite0 image tower and a causal text transformer.

Sources: EfficientNet-Lite (Tan & Le 2019, arXiv:1905.11946, Lite variant without squeeze and excitation), CLIP
(arXiv:2103.00020) for the dual encoder. Batch normalization is folded into the convolutions.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hushprompt.errors import DataError
from hushprompt.models.causal_tower import CausalBlock, CausalTower, fused_maps

STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
"""EfficientNet-B0: expansion, kernel, stride, output channels, repeats."""
NUM_FEATURES = 1280
"""Channels of the image trunk's output."""
NUM_EARLY_BLOCKS = 11
"""Blocks that pre-training left as they were on ImageNet."""


@dataclass(frozen=True, kw_only=True)
class EmojiNetworkConfig:
    """Sizes of both towers."""

    dim: int = 128
    """Width d of image and text features."""
    image_size: int = 80
    """Side in pixels to which images are resized."""
    text_width: int = 128
    """Token width e."""
    text_layers: int = 4
    text_heads: int = 4
    context_length: int = 40
    """Longest text in tokens."""
    vocab_size: int = 2048


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding, which for stride 2 is one wider behind than in front."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; zeros in front of the kernel do what uneven padding would, without a padded copy of the image."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        high, wide = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:])
        weight = F.pad(self.weight, (wide % 2, 0, high % 2, 0)) if wide % 2 or high % 2 else self.weight
        return F.conv2d(x, weight, self.bias, stride, (high - high // 2, wide - wide // 2), 1, self.groups)


class InvertedResidual(nn.Module):
    """Expand, convolve each channel, project; add the input where shapes allow."""

    def __init__(self, channels_in: int, channels_out: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        middle = channels_in * expansion
        self.expand = SameConv(channels_in, middle, 1) if expansion > 1 else None
        self.depthwise = SameConv(middle, middle, kernel, stride, groups=middle)
        self.project = SameConv(middle, channels_out, 1)
        self.has_skip = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        return x + y if self.has_skip else y


class EmbeddedImageTower(nn.Module):
    """Trunk, standardized features, linear projection."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: EmojiNetworkConfig) -> None:
        super().__init__()
        self.size = config.image_size
        self.stem = SameConv(3, 32, 3, 2)
        blocks, channels = [], 32
        for expansion, kernel, stride, out, repeats in STAGES:
            for repeat in range(repeats):
                blocks.append(InvertedResidual(channels, out, expansion, kernel, stride if repeat == 0 else 1))
                channels = out
        self.blocks = nn.ModuleList(blocks)
        self.head = SameConv(channels, NUM_FEATURES, 1)
        self.register_buffer("mean", torch.zeros(NUM_FEATURES))
        self.register_buffer("std", torch.ones(NUM_FEATURES))
        self.projection = nn.Linear(NUM_FEATURES, config.dim, bias=False)

    def early(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 112 s s"]:
        """Resize pixels in [0, 1] and run the blocks that pre-training left alone."""
        if pixels.shape[-1] != self.size:
            pixels = F.interpolate(pixels, size=(self.size, self.size), mode="bilinear", align_corners=False)
        x = F.relu6(self.stem(((pixels * 255 - 127) / 128).contiguous(memory_format=torch.channels_last)))
        for block in self.blocks[:NUM_EARLY_BLOCKS]:
            x = block(x)
        return x

    def late(self, x: Float[Tensor, "n 112 s s"]) -> Float[Tensor, "n 1280"]:
        """Run the other blocks and average over the image."""
        return self.feature_map(x).mean(dim=(2, 3))

    def feature_map(self, x: Float[Tensor, "n 112 s s"]) -> Float[Tensor, "n 1280 p p"]:
        """Run the other blocks."""
        for block in self.blocks[NUM_EARLY_BLOCKS:]:
            x = block(x)
        return F.relu6(self.head(x))

    def project(self, features: Float[Tensor, "*n 1280"]) -> Float[Tensor, "*n d"]:
        """Standardize and project."""
        projected: Tensor = self.projection((features - self.mean) / self.std)
        return projected

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Encode pixels in [0, 1]; the features are not normalized."""
        return self.project(self.late(self.early(pixels)))

    def patches(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n m d"]:
        """Encode each place of the feature map on its own; their mean is what `forward` gives. Not normalized."""
        return self.project(self.feature_map(self.early(pixels)).flatten(2).mT)


class TextBlock(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "c l e"]) -> Float[Tensor, "c l e"]:
        """Run the block on whole sequences, causally."""
        query, key, value = (
            self._heads(part) for part in self.qkv(self.norm_1(x)).chunk(3, dim=-1)
        )  # [c, h, l, e / h]
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self._rest(x, mixed.transpose(-3, -2).flatten(-2))

    def causal_block(self) -> CausalBlock:
        """Return the block as functions of tokens."""
        maps = fused_maps(self.qkv.weight, self.qkv.bias, self.heads)
        return CausalBlock(self.heads, self.norm_1, *maps, self._rest)

    def _heads(self, x: Float[Tensor, "*c l e"]) -> Float[Tensor, "*c h l f"]:
        """Split the width into heads, f = e / h."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def _rest(self, x: Float[Tensor, "*l e"], mixed: Float[Tensor, "*l e"]) -> Float[Tensor, "*l e"]:
        """Project the attention's output and run the MLP, both residual."""
        x = x + self.out(mixed)
        updated: Tensor = x + self.down(F.gelu(self.up(self.norm_2(x))))
        return updated


class TextTower(nn.Module):
    """Token and position embeddings, causal blocks, final norm, linear projection."""

    def __init__(self, config: EmojiNetworkConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.text_width)
        self.positional_embedding = nn.Parameter(torch.randn(config.context_length, config.text_width) * 0.01)
        self.blocks = nn.ModuleList(TextBlock(config.text_width, config.text_heads) for _ in range(config.text_layers))
        self.norm_final = nn.LayerNorm(config.text_width)
        self.projection = nn.Linear(config.text_width, config.dim, bias=False)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(self, tokens: Float[Tensor, "c l e"], end_index: Int[Tensor, " c"]) -> Float[Tensor, "c d"]:
        """Encode embedded sequences, without positions; give each one's feature at its end, not normalized."""
        x = tokens + self.positional_embedding[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self._feature(x[torch.arange(len(x), device=x.device), end_index])

    def causal_tower(self) -> CausalTower:
        """Return the tower as one that reads a shared prefix once."""
        blocks = tuple(block.causal_block() for block in self.blocks if isinstance(block, TextBlock))
        return CausalTower(lambda x, positions: x + self.positional_embedding[positions], blocks, self._feature)

    def _feature(self, x: Float[Tensor, "c e"]) -> Float[Tensor, "c d"]:
        """Norm and project."""
        projected: Tensor = self.projection(self.norm_final(x))
        return projected


class EmojiNetwork(nn.Module):
    """Both towers and the logit scale."""

    def __init__(self, config: EmojiNetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.image = EmbeddedImageTower(config)
        self.text = TextTower(config)
        self.log_logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def config_json(self) -> str:
        """Return the file that goes beside the weights."""
        return json.dumps(asdict(self.config), indent=1) + "\n"


def load_emoji_network(weights: Path, config: Path) -> EmojiNetwork:
    """Read a network for inference: float32 in memory, frozen.

    Raises:
        DataError: a file is missing or damaged, or the weights do not fit the config.
    """
    try:
        network = EmojiNetwork(EmojiNetworkConfig(**json.loads(config.read_text(encoding="utf-8"))))
        tensors = {name: tensor.float() for name, tensor in load_file(weights).items()}
        network.load_state_dict(tensors)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise DataError(f"The model files {weights} and {config} are missing or damaged: {error}") from error
    network.image.to(memory_format=torch.channels_last)  # type: ignore[call-overload, unused-ignore]  # torch 2.13 only
    return network.eval().requires_grad_(requires_grad=False)
