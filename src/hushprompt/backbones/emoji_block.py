"""One block of the embedded text tower on prompts that begin alike: forward and backward, written out.

The backward pass takes the gradients of b examples at once and holds them as [n, b, e]: what a token brings along (the
slopes of its GELUs, its norms, its keys) is then the same for b rows in succession.

Axis letters beside the usual ones: n all tokens, m the tokens that go on (all, or the ends alone in the last block), p
prefix tokens, k suffix tokens, q those of them that go on, s places of the longest suffix, h heads, f = e / h, g = 4 e.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hushprompt.backbones.emoji_layout import Layout
from hushprompt.backbones.emoji_network import TextBlock
from hushprompt.backbones.fixed_map import FixedMap, against

ROWS = 640
"""Rows of [tokens x examples] that go backward through an MLP together: few enough to stay in a processor's cache."""
Lift = Callable[[slice], Float[Tensor, "w b g"]]
"""Gives what an MLP's hidden layer gets at some tokens."""


def into_norm(weight: Float[Tensor, "g e"], norm: nn.LayerNorm) -> Float[Tensor, "g e"]:
    """Give a linear map behind a layer norm with the norm's scale and its loss of the mean worked in."""
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
        self.weights, self.mixed = self._attend()  # [m, h, p + s], [m, h, f]
        x = x + folded.out_forward(self.mixed.flatten(1))
        self.normed_2 = Normed(block.norm_2, x)
        self.raised = folded.up_forward(self.normed_2.value)
        self.output = x + folded.down_forward(F.gelu(self.raised))

    @property
    def num_first(self) -> int:
        """How many prefix tokens go on."""
        return 0 if self.is_last else self.layout.num_prefix

    def _attend(self) -> tuple[Float[Tensor, "m h ps"], Float[Tensor, "m h f"]]:
        """Give who looks how much at the prefix, then at the places of its own suffix, and the values mixed so."""
        p, first, layout = self.layout.num_prefix, self.num_first, self.layout
        links = layout.end_links if self.is_last else layout.links
        query, key, value = self.query[first:], self.key[p:], self.value[p:]
        scores = query.new_full((*self.query.shape[:2], p + layout.num_places), -math.inf)
        scores[..., :p] = torch.einsum("mhf,phf->mhp", self.query, self.key[:p])
        if first:
            scores[:p, :, :p] += scores.new_full((p, p), -math.inf).triu(diagonal=1).unsqueeze(1)
        own = scores[first:, :, p:]  # [q, h, s]
        for viewers, _, keys, place in links:
            own[viewers, :, place] = (query[viewers] * key[keys]).sum(dim=2)
        weights = scores.softmax(dim=-1)
        mixed = torch.einsum("mhp,phf->mhf", weights[..., :p], self.value[:p])
        for viewers, _, keys, place in links:
            mixed[first:][viewers].addcmul_(weights[first:][viewers, :, p + place, None], value[keys])
        return weights, mixed

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
        """Give the slopes of the GELU, times what the norm in front of the MLP leaves to multiply."""
        raised = self.raised[tokens]
        slope = torch.ops.aten.gelu_backward(torch.ones_like(raised), raised)
        return slope.mul_(self.normed_2.rstd[tokens]).unsqueeze(1)

    def multiply_out(self, tokens: slice) -> Float[Tensor, "w e e"]:
        """Give the matrices that do to some tokens' gradients what the way through the MLP and its residual does."""
        lifted = self.folded.down.weight * self._slope(tokens)
        matrices = project_(self.folded.up(lifted), self.normed_2.unit[tokens].unsqueeze(1))
        matrices.diagonal(dim1=1, dim2=2).add_(1)
        return matrices


class AttentionBack:
    """Attention's backward pass.

    A query or key matters through its scores alone. So a score's gradient is pulled through the products of the other
    side's vectors with the weights, which are made once for all examples, and never becomes a query or key itself.
    """

    def __init__(self, block: BlockPass, *, to_prefix: bool) -> None:
        """Make those products; fewer where only the prefix is asked for."""
        folded, layout = block.folded, block.layout
        self.folded, self.layout, self.is_last = folded, layout, block.is_last
        self.links = layout.end_links if block.is_last else layout.links
        self.query, self.first, self.to_prefix, p = block.query, block.num_first, to_prefix, layout.num_prefix
        values = torch.einsum("nhf,hfe->nhe", block.value[:p] if to_prefix else block.value, folded.out_by_head)
        keys = torch.einsum("nhf,hfe->nhe", block.key[:p] if to_prefix else block.key, folded.query)
        self.mixed = torch.einsum("mhf,hfe->mhe", block.mixed, folded.out_by_head)
        self.prefix_values = values[:p].transpose(0, 1).flatten(0, 1)  # [h p, e]
        self.prefix_keys = keys[:p].transpose(0, 1).flatten(0, 1)  # [h p, e]
        self.prefix_weights = block.weights[..., :p].contiguous().unsqueeze(1)  # [m, 1, h, p]
        if to_prefix:
            return
        own_weights = block.weights[self.first :, :, p:].transpose(1, 2)  # [q, s, h]
        self.own_weights = own_weights.unsqueeze(1).contiguous()
        partners = layout.partners[layout.ends] if self.is_last else layout.partners
        self.own_values = _take(values, partners).transpose(1, 2)  # [q, e, s h]
        self.spread_weights = own_weights.repeat_interleave(block.query.shape[2], dim=2).unsqueeze(2)  # [q, s, 1, e]
        queries = torch.einsum("mhf,hfe->mhe", block.query, folded.key_by_head)[self.first :]
        if self.is_last:
            self.own_keys = _take(keys, partners)  # [q, s h, e]
            self.own_queries = torch.cat([queries[viewers] for viewers, *_ in self.links])  # [k, h, e]
        else:  # a token's score with a later one moves its key as its own scores move its query: one product for both
            both = _take(torch.cat([keys, queries]), partners + layout.is_later * len(queries))
            for viewers, place, *_ in self.links[: layout.num_places]:
                both.unflatten(1, (layout.num_places, -1))[viewers, place] += queries[viewers]
            self.own_keys = both

    def pull_back(self, grads: Float[Tensor, "m b e"]) -> Float[Tensor, "w b e"]:
        """Pull gradients of the attention's output back to the norm before it, or to the norm's prefix alone."""
        p, first, heads = self.layout.num_prefix, self.first, self.folded.heads
        flat = grads.flatten(0, 1)
        total = torch.bmm(grads, self.mixed.mT).unsqueeze(3)  # [m, b, h, 1], each head's sum over what is seen
        scores = against(flat, self.prefix_values).view(*grads.shape[:2], heads, p).sub_(total).mul_(self.prefix_weights)
        if self.to_prefix:
            return self._keys_and_looks(scores).add_(self._values_at_once(grads))
        own = torch.bmm(grads[first:], self.own_values).unflatten(2, (-1, heads))  # [q, b, s, h]
        own = own.sub_(total[first:].mT).mul_(self.own_weights)
        mixed = self.folded.out(flat).view_as(grads)
        pulled = grads.new_empty(len(self.layout.positions), *grads.shape[1:])
        torch.add(self._keys_and_looks(scores), self._values(mixed), out=pulled[:p])
        self._to_own(scores[first:].flatten(2), own, mixed[first:], pulled[p:])
        return pulled

    def _keys_and_looks(self, scores: Float[Tensor, "m b h p"]) -> Float[Tensor, "p b e"]:
        """Pull scores back to the prefix, as what is looked at and as what looks."""
        num_examples, size = scores.shape[1], self.query.shape[2]
        key = scores.new_empty(num_examples, scores.shape[3], len(self.folded.key))  # [b, p, e]
        for head in range(self.folded.heads):
            query = self.query[:, head].expand(num_examples, -1, -1)
            key[:, :, head * size : (head + 1) * size] = torch.bmm(scores[:, :, head].permute(1, 2, 0), query)
        pulled = (key @ self.folded.key).transpose(0, 1)
        return pulled + scores[: self.first].flatten(2) @ self.prefix_keys if self.first else pulled

    def _values(self, mixed: Float[Tensor, "m b e"]) -> Float[Tensor, "p b e"]:
        """Pull back to the prefix's values."""
        num_examples, size = mixed.shape[1], self.query.shape[2]
        value = mixed.new_empty(num_examples, self.layout.num_prefix, mixed.shape[2])  # [b, p, e]
        for head in range(self.folded.heads):
            part = slice(head * size, (head + 1) * size)
            weights = self.prefix_weights[:, 0, head].T.expand(num_examples, -1, -1)
            value[:, :, part] = torch.bmm(weights, mixed[:, :, part].transpose(0, 1))
        return (value @ self.folded.value).transpose(0, 1)

    def _values_at_once(self, grads: Float[Tensor, "m b e"]) -> Float[Tensor, "p b e"]:
        """Do so where nothing else asks for `mixed`: over the tokens first, then through the attention's output."""
        weights = self.prefix_weights[:, 0].permute(1, 2, 0).flatten(0, 1)  # [h p, m]
        by_head = torch.mm(weights, grads.flatten(1)).view(self.folded.heads, -1, grads.shape[2])  # [h, p b, e]
        value = torch.bmm(by_head, self.folded.out_by_head.mT).transpose(0, 1).flatten(1)  # [p b, h f]
        return (value @ self.folded.value).view(-1, *grads.shape[1:])

    def _to_own(
        self,
        scores: Float[Tensor, "q b hp"],
        own: Float[Tensor, "q b s h"],
        mixed: Float[Tensor, "q b e"],
        pulled: Float[Tensor, "k b e"],
    ) -> None:
        """Write into `pulled` what comes to the suffix tokens, as those that look and as what is seen."""
        value = torch.empty_like(pulled)
        for index, (viewers, viewer_place, keys, place) in enumerate(self.links):
            if index < self.layout.num_places:  # the first links have every key once
                torch.mul(mixed[viewers], self.spread_weights[viewers, place], out=value[keys])
            else:
                value[keys].addcmul_(mixed[viewers], self.spread_weights[viewers, place])
                own[keys, :, viewer_place] = own[viewers, :, place]
        looking = own.new_empty(*own.shape[:2], pulled.shape[2]) if self.is_last else pulled
        torch.bmm(own.flatten(2), self.own_keys, out=looking)
        looking.flatten(0, 1).addmm_(scores.flatten(0, 1), self.prefix_keys)
        if self.is_last:
            seen = torch.cat([own[viewers, :, place] for viewers, _, _, place in self.links])  # [k, b, h]
            torch.bmm(seen, self.own_queries, out=pulled)
            pulled.index_add_(0, self.layout.ends, looking)
        pulled.flatten(0, 1).addmm_(value.flatten(0, 1), self.folded.value)


class BlockProducts(NamedTuple):
    """What does not depend on examples, made once for all that share a context."""

    mlp: Float[Tensor, "m e e"]
    """See `BlockPass.multiply_out`."""
    attention: AttentionBack


def _take(vectors: Float[Tensor, "n h e"], rows: Int[Tensor, "k s"]) -> Float[Tensor, "k sh e"]:
    """Gather [h, e] vectors by row."""
    taken = vectors.flatten(1).index_select(0, rows.flatten())
    return taken.view(len(rows), -1, vectors.shape[2])
