"""Attention of heads that share keys and values: their queries stand behind each other, and the keys are not copied.

The library repeats shared keys and values for every head wherever there is a mask. Here g heads with l queries each are
one head with g * l queries, with the mask repeated once for all layers: the same numbers up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

NAME = "hushprompt_sdpa"
"""Of this attention in transformers."""


def use(transformers: Any, language: Any) -> None:
    """Make a language model attend in this way, where it is given a mask for it; else it does as with "sdpa"."""
    plain = transformers.AttentionInterface()["sdpa"]
    masks = transformers.AttentionMaskInterface()

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
    ) -> tuple[Tensor, None]:
        if attention_mask is None or attention_mask.shape[2] == query.shape[2]:
            return plain(module, query, key, value, attention_mask, **settings)
        return grouped(query, key, value, attention_mask, settings.get("scaling")), None

    transformers.AttentionInterface.register(NAME, attend)
    transformers.AttentionMaskInterface.register(NAME, masks["sdpa"])
    language.set_attn_implementation(NAME)


def grouped(
    query: Float[Tensor, "b h l d"],
    key: Float[Tensor, "b s k d"],
    value: Float[Tensor, "b s k d"],
    mask: Float[Tensor, "b 1 gl k"],
    scaling: float | None = None,
) -> Float[Tensor, "b l h d"]:
    """Attend with h = g * s heads, g of which share each of s keys and values; the mask is repeated g times."""
    together = query.reshape(*key.shape[:2], -1, query.shape[-1])
    found = F.scaled_dot_product_attention(together, key, value, attn_mask=mask, scale=scaling)
    return found.reshape(query.shape).transpose(1, 2).contiguous()
