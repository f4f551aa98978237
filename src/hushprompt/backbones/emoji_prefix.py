"""The embedded text tower on prompts that begin alike: forward and backward, written out.

All prompts share a prefix and differ in a short suffix. The prefix is read once; a suffix token sees the prefix and its
own suffix, causally. All tokens lie in one matrix [n, e], prefix first, so each linear map is one product.

The backward pass takes many cotangents at once, one for each example of a batch. torch's own, under `is_grads_batched`,
has no batching rule for GELU, layer norm and softmax and spends half its time on copies; here each of them is a product
with what the forward pass saved. `TextTower.forward` and plain autograd are the slow twin.

Axis letters beside the usual ones: n all tokens, m the tokens that go on (all, or the ends alone in the last block), p
prefix tokens, s columns of attention, h heads, f = e / h, g = 4 e.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hushprompt.backbones.emoji_network import TextBlock, TextTower

CHUNK = 7
"""Cotangents that go backward together: few enough that what they touch stays in the processor's cache."""


def encode_shared_prefix(
    tower: TextTower, prefix: Float[Tensor, "p e"], suffixes: Sequence[Float[Tensor, "_ _ e"]]
) -> Float[Tensor, "c d"]:
    """Encode prompts that begin alike; differentiable once, in `prefix`, also for batched gradients.

    Args:
        tower: the frozen text tower.
        prefix: [p, e] embedded tokens that all prompts begin with.
        suffixes: one [count, length, e] for each length: what follows the prefix, up to the end token.

    Returns:
        [c, d] features in the order of `suffixes`, not normalized.
    """
    features: Tensor = _Encode.apply(prefix, tower, suffixes)
    return features


class Link(NamedTuple):
    """Suffix tokens in a row, each of which sees one token of its own suffix."""

    rows: slice
    """Who looks."""
    keys: slice
    """At whom, one by one."""
    column: int
    """Column of attention in which these links stand."""


@dataclass(frozen=True)
class Layout:
    """Where the tokens lie: the prefix, then the first tokens of all suffixes, longest suffix first, the second, ...

    The suffixes that reach a position are the first ones at every position before it, so all links are slices.
    """

    tokens: Int[Tensor, " k"]
    """Which token of the suffixes, end to end, lies where."""
    positions: Int[Tensor, " n"]
    ends: Int[Tensor, " c"]
    """Rows of the end tokens, longest suffix first."""
    order: Int[Tensor, " c"]
    """Which of `ends` belongs to which suffix, in the order given."""
    num_columns: int
    links: tuple[Link, ...]
    end_links: tuple[Link, ...]
    """Links of the rows `ends`, counted from 0."""


@functools.lru_cache(maxsize=16)
def _layout(num_prefix: int, shapes: tuple[tuple[int, int], ...]) -> Layout:
    """Lay out suffixes, given the number and length of those of each length."""
    lengths = [length for count, length in shapes for _ in range(count)]
    firsts = [0, *itertools.accumulate(lengths)]
    ranked = sorted(range(len(lengths)), key=lambda suffix: -lengths[suffix])
    counts = [sum(length > at for length in lengths) for at in range(max(lengths))]
    starts = [num_prefix, *(num_prefix + end for end in itertools.accumulate(counts))]
    columns = range(len(counts))
    return Layout(
        tokens=torch.tensor([firsts[suffix] + at for at in columns for suffix in ranked[: counts[at]]]),
        positions=torch.tensor([*range(num_prefix), *(num_prefix + at for at in columns for _ in range(counts[at]))]),
        ends=torch.tensor([starts[lengths[suffix] - 1] + rank for rank, suffix in enumerate(ranked)]),
        order=torch.tensor(ranked).argsort(),
        num_columns=num_prefix + len(counts),
        links=(
            Link(slice(num_prefix, starts[-1]), slice(num_prefix, starts[-1]), num_prefix),  # each one sees itself
            *(
                Link(slice(starts[at], starts[at + 1]), slice(starts[seen], starts[seen] + counts[at]), column)
                for at in columns
                for seen, column in zip(range(at), range(num_prefix + 1, num_prefix + 1 + at), strict=True)
            ),
        ),
        end_links=tuple(
            Link(slice(0, counts[seen]), slice(starts[seen], starts[seen + 1]), num_prefix + seen) for seen in columns
        ),
    )


class Normed:
    """A layer norm's output, and what its backward pass needs."""

    def __init__(self, norm: nn.LayerNorm, x: Float[Tensor, "m e"]) -> None:
        """Norm x."""
        self.unit, _, self.rstd = torch.native_layer_norm(x, norm.normalized_shape, None, None, norm.eps)
        self.value = torch.addcmul(norm.bias, self.unit, norm.weight)

    def pull_back(self, grads: Float[Tensor, "b w e"]) -> Float[Tensor, "b w e"]:
        """Pull back gradients at the first w rows of `unit` that have mean 0; see `_into_norm`."""
        unit, rstd = self.unit[: grads.shape[1]], self.rstd[: grads.shape[1]]
        along = torch.linalg.vecdot(grads, unit).unsqueeze(-1) / -unit.shape[-1]
        return torch.addcmul(grads, along, unit).mul_(rstd)


def _into_norm(weight: Float[Tensor, "g e"], norm: nn.LayerNorm) -> Float[Tensor, "g e"]:
    """Give a linear map behind a layer norm with the norm's scale and its loss of the mean worked in."""
    scaled = weight * norm.weight
    return scaled - scaled.mean(dim=1, keepdim=True)


class Attention:
    """Attention to the prefix and to one's own suffix."""

    def __init__(
        self,
        query: Float[Tensor, "m h f"],
        key: Float[Tensor, "n h f"],
        value: Float[Tensor, "n h f"],
        bias: Float[Tensor, "m 1 p"],
        links: tuple[Link, ...],
        num_columns: int,
    ) -> None:
        """Attend; the scale of the scores is in `query` already."""
        self.query, self.key, self.value, self.links = query, key, value, links
        self.num_prefix = bias.shape[-1]
        scores = query.new_full((*query.shape[:2], num_columns), float("-inf"))
        scores[..., : self.num_prefix] = torch.einsum("mhf,phf->mhp", query, key[: self.num_prefix]) + bias
        for rows, keys, column in links:
            scores[rows, :, column] = (query[rows] * key[keys]).sum(dim=-1)
        self.weights = scores.softmax(dim=-1)  # [m, h, s]
        self.mixed = torch.einsum("mhp,phf->mhf", self.weights[..., : self.num_prefix], value[: self.num_prefix])
        for rows, keys, column in links:
            self.mixed[rows] += self.weights[rows, :, column, None] * value[keys]

    def pull_back(self, grads: Float[Tensor, "b m h f"], to_query: Tensor, to_key: Tensor, to_value: Tensor) -> None:
        """Write the gradients of query [b, m, h, f], key and value [b, n, h, f] over zeros, given that of `mixed`."""
        p, width = self.num_prefix, self.weights.shape[-1]
        to_weights = grads.new_zeros(*grads.shape[:3], width)
        for head in range(grads.shape[2]):
            to_weights[:, :, head, :p] = grads[:, :, head] @ self.value[:p, head].T
        for rows, keys, column in self.links:
            to_weights[:, rows, :, column] = (grads[:, rows] * self.value[keys]).sum(dim=-1)
        to_weights *= self.weights
        to_scores = to_weights - self.weights * to_weights.sum(dim=-1, keepdim=True)
        for head in range(grads.shape[2]):
            own = to_scores[:, :, head, :p]
            to_query[:, :, head] = own @ self.key[:p, head]
            to_key[:, :p, head] = own.transpose(1, 2) @ self.query[:, head]
            to_value[:, :p, head] = self.weights[:, head, :p].T @ grads[:, :, head]
        for rows, keys, column in self.links:
            own = to_scores[:, rows, :, column, None]
            to_query[:, rows].addcmul_(own, self.key[keys])
            to_key[:, keys].addcmul_(own, self.query[rows])
            to_value[:, keys].addcmul_(self.weights[rows, :, column, None], grads[:, rows])


class BlockPass:
    """One block's forward pass, and what its backward pass needs."""

    def __init__(
        self,
        block: TextBlock,
        x: Float[Tensor, "n e"],
        layout: Layout,
        num_prefix: int,
        rows: Int[Tensor, " m"] | None,
    ) -> None:
        """Run the block; `rows` are those that go on, None for all."""
        self.block, self.rows = block, rows
        self.normed_1 = Normed(block.norm_1, x)
        query, key, value = (
            part.unflatten(-1, (block.heads, -1))
            for part in F.linear(self.normed_1.value, block.qkv.weight, block.qkv.bias).chunk(3, dim=-1)
        )
        bias = x.new_full((len(x), 1, num_prefix), 0.0)
        bias[:num_prefix, 0] = x.new_full((num_prefix, num_prefix), float("-inf")).triu(diagonal=1)
        links = layout.links
        if rows is not None:
            x, query, bias, links = x[rows], query[rows], bias[rows], layout.end_links
        self.attention = Attention(query * block.scale, key, value, bias, links, layout.num_columns)
        x = x + F.linear(self.attention.mixed.flatten(1), block.out.weight, block.out.bias)
        self.normed_2 = Normed(block.norm_2, x)
        self.raised = F.linear(self.normed_2.value, block.up.weight, block.up.bias)
        self.output = x + F.linear(F.gelu(self.raised), block.down.weight, block.down.bias)

    @functools.cached_property
    def gelu_slope(self) -> Float[Tensor, "m g"]:
        """Derivative of the GELU."""
        return torch.ops.aten.gelu_backward(torch.ones_like(self.raised), self.raised)

    @functools.cached_property
    def weights(self) -> tuple[Tensor, Tensor]:
        """Maps into the two layer norms: of the MLP, and of query, key and value."""
        block = self.block
        qkv = block.qkv.weight.clone()
        qkv[: block.qkv.in_features] *= block.scale
        return _into_norm(block.up.weight, block.norm_2), _into_norm(qkv, block.norm_1)

    def pull_back(self, grads: Float[Tensor, "b m e"], num_wanted: int) -> Float[Tensor, "b w e"]:
        """Pull back the output's gradients to the first rows of the input: the prefix's, or all."""
        block, (up, qkv) = self.block, self.weights
        inner = (grads @ block.down.weight).mul_(self.gelu_slope)
        grads = grads + self.normed_2.pull_back(inner @ up)
        mixed = (grads @ block.out.weight).unflatten(-1, (block.heads, -1))
        parts = grads.new_zeros(len(grads), len(self.normed_1.unit), 3, *mixed.shape[2:])  # [b, n, 3, h, f]
        query = parts[:, :, 0] if self.rows is None else torch.empty_like(mixed)
        self.attention.pull_back(mixed, query, parts[:, :, 1], parts[:, :, 2])
        if self.rows is not None:
            parts[:, self.rows, 0] = query
        pulled = self.normed_1.pull_back(parts[:, :num_wanted].flatten(2) @ qkv)
        if self.rows is None:
            return pulled.add_(grads[:, :num_wanted])
        if num_wanted == len(self.normed_1.unit):
            pulled[:, self.rows] += grads
        return pulled


class TowerPass:
    """The tower's forward pass on prompts that begin alike, and its backward pass to the prefix."""

    def __init__(
        self, tower: TextTower, prefix: Float[Tensor, "p e"], suffixes: Sequence[Float[Tensor, "_ _ e"]]
    ) -> None:
        """Run the tower."""
        self.tower, self.num_prefix = tower, len(prefix)
        self.layout = _layout(len(prefix), tuple((len(group), group.shape[1]) for group in suffixes))
        tokens = torch.cat([group.flatten(0, 1) for group in suffixes])[self.layout.tokens]
        x = torch.cat([prefix, tokens]) + tower.positional_embedding[self.layout.positions]
        self.blocks: list[BlockPass] = []
        for index, block in enumerate(tower.blocks):
            assert isinstance(block, TextBlock)
            rows = self.layout.ends if index == len(tower.blocks) - 1 else None
            self.blocks.append(BlockPass(block, x, self.layout, len(prefix), rows))
            x = self.blocks[-1].output
        self.normed = Normed(tower.norm_final, x)
        self.features = (self.normed.value @ tower.projection.weight.T)[self.layout.order]  # [c, d]

    def pull_back(self, cotangents: Float[Tensor, "b c d"]) -> Float[Tensor, "b p e"]:
        """Give the prefix's gradient for every cotangent."""
        final = _into_norm(self.tower.projection.weight, self.tower.norm_final)
        ranked = self.layout.order.argsort()
        return torch.cat([self._pull_back(chunk[:, ranked] @ final) for chunk in cotangents.split(CHUNK)])

    def _pull_back(self, grads: Float[Tensor, "b c e"]) -> Float[Tensor, "b p e"]:
        """Go back from the final norm to the prefix; the suffixes' own embeddings are constants."""
        first, *later = self.blocks
        grads = self.normed.pull_back(grads)
        for block in reversed(later):
            grads = block.pull_back(grads, len(block.normed_1.unit))
        return first.pull_back(grads, self.num_prefix)


class _Encode(torch.autograd.Function):
    """From prefix to features; keeps the forward pass for the backward pass."""

    @staticmethod
    def forward(ctx: Any, prefix: Tensor, tower: TextTower, suffixes: Sequence[Tensor]) -> Tensor:
        """Run the tower."""
        ctx.tower_pass = TowerPass(tower, prefix, suffixes)
        return ctx.tower_pass.features

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:
        """Hand over to a function that knows what to do under vmap."""
        return _PullBack.apply(cotangent, ctx.tower_pass), None, None


class _PullBack(torch.autograd.Function):
    """From a cotangent to the prefix's gradient: one, or under vmap a batch."""

    @staticmethod
    def forward(cotangent: Tensor, tower_pass: TowerPass) -> Tensor:
        """Pull one back."""
        return tower_pass.pull_back(cotangent[None])[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing: there is no second derivative."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], cotangents: Tensor, tower_pass: TowerPass) -> tuple[Tensor, int]:
        """Pull a batch back."""
        return tower_pass.pull_back(cotangents.movedim(in_dims[0], 0)), 0
