"""The image towers of open_clip; CLIP's vision transformers and ResNets have one feature for each patch, too.

For patches their own modules are called one by one. All tokens of a transformer get the norm and the projection of its
class token; a ResNet's attention pool is asked at every place of the feature map, not at their mean alone. Both are
what the released code of FedOTP (Li et al. 2024, arXiv:2403.00041) does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from hushprompt.models.image_graph import ImageGraph, PixelRecipe, TowerGraph, no_graph

Tokens = Callable[[Float[Tensor, "n 3 h w"]], Float[Tensor, "n _ d"]]
"""From pixels to the pooled feature [n, 0] and the patches [n, 1:], not normalized."""


class ImageTower:
    """The image tower of a model of both towers, with its preprocessing; it follows the network's device and dtype."""

    def __init__(self, open_clip: Any, network: Any, preprocess: dict[str, Any]) -> None:
        """Take a frozen network.

        Args:
            open_clip: the library.
            network: one of its models.
            preprocess: settings of the image transform, where they differ from the library's defaults.
        """
        transform = open_clip.transform
        settings = transform.merge_preprocess_dict(dataclasses.asdict(transform.PreprocessCfg()), preprocess)
        self.network = network
        self.preprocess: dict[str, Any] = {**settings, "size": network.visual.image_size}
        self._transform = transform.image_transform_v2(transform.PreprocessCfg(**self.preprocess), is_train=False)
        tower = patch_tower(open_clip, network.visual)
        self.tokens: Tokens | None = None if tower is None else tower[0]

    def pixels(self, images: Sequence[np.ndarray]) -> Float[Tensor, "n 3 h w"]:
        """Preprocess uint8 images [h, w, 3] of any size."""
        return torch.stack([self._transform(Image.fromarray(image)) for image in images]).to(self.network.logit_scale)

    def encode(self, images: Sequence[np.ndarray]) -> Float[Tensor, "n d"]:
        """Return unit-norm features."""
        return F.normalize(self.network.encode_image(self.pixels(images)).float(), dim=-1)

    def encode_patches(self, images: Sequence[np.ndarray]) -> Float[Tensor, "n m d"]:
        """Return unit-norm features of all patches; only where there are `tokens`."""
        assert self.tokens is not None
        return F.normalize(self.tokens(self.pixels(images))[:, 1:].float(), dim=-1)

    def graph(self) -> ImageGraph:
        """Return the tower as a module, and the transform as a recipe.

        Raises:
            ConfigError: the transform fills an image up, or cuts another shape than a square out of it.
        """
        how = self.preprocess
        height, width = how["size"] if isinstance(how["size"], (tuple, list)) else (how["size"], how["size"])
        is_cut = how["resize_mode"] == "shortest"
        if how["resize_mode"] == "longest" or (is_cut and height != width):
            raise no_graph(f"it takes {height} x {width} pixels after the resize mode {how['resize_mode']!r}")
        recipe = PixelRecipe(
            short_side=height if is_cut else None,
            size=(width, height),
            interpolation="bilinear" if how["interpolation"] == "bilinear" else "bicubic",
            crop_rounding="nearest",
            mean=tuple(how["mean"]),
            std=tuple(how["std"]),
        )
        return ImageGraph(TowerGraph(self.network.encode_image, self.network.visual), recipe)


def patch_tower(open_clip: Any, visual: Any) -> tuple[Tokens, int] | None:
    """Return an image tower's tokens and number of patches; None if it pools in another way.

    Args:
        open_clip: the library.
        visual: `model.visual` of one of its models.
    """
    if isinstance(visual, open_clip.transformer.VisionTransformer):
        is_pooled_by_token = visual.attn_pool is None and visual.pool_type == "tok"
        rows, columns = visual.grid_size
        return (lambda pixels: _transformer_tokens(visual, pixels), rows * columns) if is_pooled_by_token else None
    if isinstance(visual, open_clip.modified_resnet.ModifiedResNet):
        return lambda pixels: _resnet_tokens(visual, pixels), len(visual.attnpool.positional_embedding) - 1
    return None


def num_patches_of(open_clip: Any, visual: Any) -> int | None:
    """Return an image tower's number of patches; None if it gives none."""
    tower = patch_tower(open_clip, visual)
    return None if tower is None else tower[1]


def _transformer_tokens(visual: Any, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n _ d"]:
    """Norm and project all tokens of the last layer."""
    tokens = visual.ln_post(visual.transformer(visual._embeds(pixels)))
    return tokens if visual.proj is None else tokens @ visual.proj


def _resnet_tokens(visual: Any, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n _ d"]:
    """Ask the attention pool at the mean and at every place."""
    x = visual.stem(pixels)
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = layer(x)
    pool, x = visual.attnpool, x.flatten(2).mT  # [n, m, width]
    x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + pool.positional_embedding
    query, key, value = (
        projection(x).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
        for projection in (pool.q_proj, pool.k_proj, pool.v_proj)
    )
    return pool.c_proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
