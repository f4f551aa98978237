"""The image towers of open_clip that have one feature for each patch: CLIP's vision transformers and ResNets.

Their own modules are called one by one. All tokens of a transformer get the norm and the projection of its class
token; a ResNet's attention pool is asked at every place of the feature map, not at their mean alone. Both are what the
released code of FedOTP (Li et al. 2024, arXiv:2403.00041) does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Tokens = Callable[[Float[Tensor, "n 3 h w"]], Float[Tensor, "n _ d"]]
"""From pixels to the pooled feature [n, 0] and the patches [n, 1:], not normalized."""


def patch_tower(open_clip: Any, visual: Any) -> tuple[Tokens, int] | None:
    """Give an image tower's tokens and number of patches; None if it pools in another way.

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
