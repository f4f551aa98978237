"""One block of the embedded text tower on prompts that begin alike: forward and backward, written out.

The backward pass takes the gradients of b examples at once and holds them as [n, b, e]: what a token brings along (the
slopes of its GELUs, its norms, its keys) is then the same for b rows in succession.

Axis letters beside the usual ones: n all tokens, m the tokens that go on (all, or the ends alone in the last block), p
prefix tokens, k suffix tokens, q those of them that go on, s the longest suffix, h heads, f = e / h, g = 4 e.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hushprompt.models.embedded_network import TextBlock
from hushprompt.models.emoji_attention import AttentionBack, attend
from hushprompt.models.emoji_layout import Layout
from hushprompt.models.fixed_map import FixedMap

ROWS = 640
"""Rows of [tokens x examples] that go backward through an MLP together: few enough to stay in a processor's cache."""
Lift = Callable[[slice], Float[Tensor, "w b g"]]
"""Gives what an MLP's hidden layer gets at some tokens."""


def into_norm(weight: Float[Tensor, "g e"], norm: nn.LayerNorm) -> Float[Tensor, "g e"]:
    """Return a linear map behind a layer norm with the norm's scale and its loss of the mean worked in."""
    scaled = weight.detach() * norm.weight.detach()
    return scaled - scaled.mean(dim=1, keepdim=True)


class FoldedBlock:
    """A block, and its weights as both passes want them; made once for a tower."""

    def __init__(self, block: TextBlock) -> None:
        """Work the layer norms into the maps behind them."""
        width, self.heads = block.qkv.in_features, block.heads
        query, key, value = block.qkv.weight.chunk(3)
        self.block = block
        self.qkv_forward, self.out_forward, self.up_forward, self.down_forward = (
            FixedMap(linear.weight.detach().T, linear.bias.detach())
            for linear in (block.qkv, block.out, block.up, block.down)
        )
        self.up = FixedMap(into_norm(block.up.weight, block.norm_2))
        self.down = FixedMap(block.down.weight.detach())
        self.out = FixedMap(block.out.weight.detach())
        self.out_by_head = self.out.weight.T.reshape(self.heads, -1, width)  # [h, f, e]
        self.query = into_norm(query * block.scale, block.norm_1).view(self.heads, -1, width)
        self.key = into_norm(key, block.norm_1)
        self.key_by_head = self.key.view(self.heads, -1, width)
        self.value = into_norm(value, block.norm_1)


class Normed:
    """A layer norm's output, and what its backward pass needs."""

    def __init__(self, norm: nn.LayerNorm, x: Float[Tensor, "m e"]) -> None:
        """Norm x."""
        self.unit, _, self.rstd = torch.native_layer_norm(x, norm.normalized_shape, None, None, norm.eps)
        self.value = torch.addcmul(norm.bias, self.unit, norm.weight)


def project_(grads: Float[Tensor, "w b e"], unit: Float[Tensor, "w 1 e"]) -> Float[Tensor, "w b e"]:
    """Take from gradients behind a norm, in place, what would change no norm; its `rstd` is left to multiply.

    The gradients have mean 0; see `into_norm`.
    """
    along = torch.bmm(grads, unit.mT)  # [w, b, 1]
    return grads.addcmul_(along, unit, value=-1 / unit.shape[2])


class BlockPass:
    """One block's forward pass, and its backward pass, which leaves nothing behind."""

    def __init__(self, folded: FoldedBlock, x: Float[Tensor, "n e"], layout: Layout, *, is_last: bool) -> None:
        """Run the block. Of the last one only the end tokens go on: the others have keys and values there, no more."""
        block = folded.block
        self.folded, self.layout, self.is_last = folded, layout, is_last
        self.normed_1 = Normed(block.norm_1, x)
        query, self.key, self.value = (
            part.unflatten(-1, (block.heads, -1)) for part in folded.qkv_forward(self.normed_1.value).chunk(3, dim=-1)
        )
        if is_last:
            x, query = (part[layout.num_prefix :][layout.ends] for part in (x, query))
        self.query = query * block.scale  # [m, h, f]
        self.weights, self.mixed = attend(self.query, self.key, self.value, layout, is_last=is_last)
        x = x + folded.out_forward(self.mixed.flatten(1))
        self.normed_2 = Normed(block.norm_2, x)
        self.raised = folded.up_forward(self.normed_2.value)
        self.output = x + folded.down_forward(F.gelu(self.raised))

    @property
    def num_first(self) -> int:
        """How many prefix tokens go on."""
        return 0 if self.is_last else self.layout.num_prefix

    def pull_back(
        self,
        grads: Float[Tensor, "m b e"],
        lift: Lift | None = None,
        *,
        to_prefix: bool = False,
        products: BlockProducts | None = None,
    ) -> Float[Tensor, "w b e"]:
        """Pull the output's gradients back to the input, or to its prefix alone; writes over what it is given.

        Args:
            grads: [m, b, e] gradients of the output.
            lift: gives the product of some of them with the MLP's last map, where there is a shorter way to it.
            to_prefix: the suffixes are constants.
            products: what was made of this block beforehand, with `to_prefix` as it is here.
        """
        if products is None:
            self._through_mlp(grads, lift)
            attention = AttentionBack(self, to_prefix=to_prefix)
        else:
            grads, attention = torch.bmm(grads, products.mlp), products.attention
        pulled = attention.pull_back(grads)
        pulled = project_(pulled, self.normed_1.unit[: len(pulled)].unsqueeze(1))
        rstd = self.normed_1.rstd[: len(pulled)].unsqueeze(1)
        if not self.is_last:
            return grads[: len(pulled)].addcmul_(pulled, rstd)
        pulled *= rstd
        if not to_prefix:
            pulled[self.layout.num_prefix :].index_add_(0, self.layout.ends, grads)
        return pulled

    def _through_mlp(self, grads: Float[Tensor, "m b e"], lift: Lift | None) -> None:
        """Pull gradients back through the MLP and its residual, in place, a few rows at a time."""
        step = max(1, ROWS // max(1, grads.shape[1]))
        whole = (grads, self._slope(slice(None)), self.normed_2.unit.unsqueeze(1))
        for index, (part, steep, unit) in enumerate(zip(*(each.split(step) for each in whole), strict=True)):
            hidden = self.folded.down(part) if lift is None else lift(slice(index * step, index * step + len(part)))
            part += project_(self.folded.up(hidden.mul_(steep)), unit)

    def _slope(self, tokens: slice) -> Float[Tensor, "w 1 g"]:
        """Return the slopes of the GELU, times what the norm in front of the MLP leaves to multiply."""
        raised = self.raised[tokens]
        slope = torch.ops.aten.gelu_backward(torch.ones_like(raised), raised)
        return slope.mul_(self.normed_2.rstd[tokens]).unsqueeze(1)

    def multiply_out(self, tokens: slice) -> Float[Tensor, "w e e"]:
        """Return the matrices that do to some tokens' gradients what the way through the MLP and its residual does."""
        lifted = self.folded.down.weight * self._slope(tokens)
        matrices = project_(self.folded.up(lifted), self.normed_2.unit[tokens].unsqueeze(1))
        matrices.diagonal(dim1=1, dim2=2).add_(1)
        return matrices


class BlockProducts(NamedTuple):
    """What does not depend on examples, made once for all that share a context."""

    mlp: Float[Tensor, "m e e"]
    """See `BlockPass.multiply_out`."""
    attention: AttentionBack
