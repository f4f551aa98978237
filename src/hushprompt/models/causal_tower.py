"""The causal text tower: prompts that begin alike are computed with their common beginning once.

In a causal tower no token sees what follows it. The prompts `[start][context][name][end]` of all classes have the same
start and context, so these tokens, the prefix, are computed once; each class adds its suffix, whose tokens see the
whole prefix and the earlier tokens of their own suffix. Linear maps take the tokens of all suffixes together, attention
those of one length. This is exact up to rounding; a model's `encode_prompts`, one padded sequence a class, is the
reference.

A model says what its blocks do with tokens; which token attends to which is decided here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt.models import packing
from hushprompt.models.packing import Packing, encode_packed

Tokens = Float[Tensor, "_ e"]
"""Any number of tokens."""
TokenMap = Callable[[Tokens], Tokens]


@dataclass(frozen=True)
class CausalBlock:
    """One transformer block, as functions of tokens."""

    num_heads: int
    norm: TokenMap
    """The norm before attention."""
    query: TokenMap
    """Queries of normed tokens, scaled."""
    key: TokenMap
    value: TokenMap
    rest: Callable[[Tokens, Tokens], Tokens]
    """The block's output from its input and from the values that attention has mixed."""


@dataclass(frozen=True)
class ClassToken:
    """A token behind the end of the text at which the feature is read (CoCa)."""

    token: Float[Tensor, " e"]
    position: int
    """Always the same: behind the longest text."""
    padding: Float[Tensor, " e"] | None
    """CoCa's published weights were trained with a mask that is one place off: where padding follows the text, the
    class token sees the first padding token in the place of itself. None: the class token sees itself."""


@dataclass(frozen=True)
class CausalTower:
    """A text tower whose feature is read at the end token, or at a class token behind it."""

    embed: Callable[[Tokens, Int[Tensor, " _"]], Tokens]
    """Adds position embeddings to embedded tokens, given the position of each; casts to the tower's precision."""
    blocks: tuple[CausalBlock, ...]
    head: TokenMap
    """Final norm and projection."""
    class_token: ClassToken | None = None

    def encode(self, prefix: Float[Tensor, "p e"], suffixes: Sequence[Float[Tensor, "_ _ e"]]) -> Float[Tensor, "c d"]:
        """Encode prompts that begin alike; differentiable in `prefix`, also for batched gradients.

        Args:
            prefix: [p, e] embedded tokens that all prompts begin with.
            suffixes: one [count, length, e] for each length: what follows the prefix, up to the end token.

        Returns:
            [c, d] features in the order of `suffixes`, not normalized.
        """
        if self._is_packed(prefix, suffixes):
            return self.head(encode_packed(self.run_packed, prefix, suffixes))
        groups = [self._with_class_token(len(prefix), group) for group in suffixes]
        shapes = tuple(shape for _, shape in groups)
        layout = _layout(len(prefix), shapes, prefix.device)
        x = self.embed(prefix, torch.arange(len(prefix), device=prefix.device))
        y = self.embed(torch.cat([group.flatten(0, 1) for group, _ in groups]), layout.positions)
        *blocks, last = self.blocks
        for block in blocks:
            x, y = _run(block, x, y, layout)
        return self.head(_run_last(last, x, y, layout))

    def _is_packed(self, prefix: Float[Tensor, "p e"], suffixes: Sequence[Float[Tensor, "_ _ e"]]) -> bool:
        """Return whether one packed sequence is faster than the suffixes by length.

        It is on a GPU, where every kernel has its price, and on a CPU in a forward pass alone, if all classes fit into
        one sequence: measured with CLIP ViT-B/16 and the embedded model, by a tenth.
        """
        if self.class_token is not None:
            return False
        is_differentiated = torch.is_grad_enabled() and prefix.requires_grad
        num_tokens = len(prefix) + sum(group.shape[:2].numel() for group in suffixes)
        return prefix.is_cuda or (not is_differentiated and num_tokens <= packing.MAX_TOKENS)

    def run_packed(self, tokens: Float[Tensor, "l e"], layout: Packing) -> Float[Tensor, "m e"]:
        """Run all blocks on one packed sequence, and return the last one's output at the end of each suffix."""
        x, ends = self.embed(tokens, layout.positions), layout.ends
        *blocks, last = self.blocks
        for block in blocks:
            normed = block.norm(x)
            x = block.rest(x, _attend(block, normed, normed, layout.mask))
        normed = last.norm(x)
        return last.rest(x[ends], _attend(last, normed[ends], normed, layout.mask[ends]))

    def _with_class_token(
        self, num_prefix: int, group: Float[Tensor, "m l e"]
    ) -> tuple[Float[Tensor, "m _ e"], SuffixShape]:
        """Append what follows the text, if anything does."""
        count, length = group.shape[:2]
        end = self.class_token
        if end is None:
            return group, SuffixShape(count, length, num_prefix + length - 1)
        is_blind = end.padding is not None and num_prefix + length < end.position
        behind = torch.stack([end.padding, end.token] if end.padding is not None and is_blind else [end.token])
        group = torch.cat([group, behind.float().expand(count, -1, -1)], dim=1)
        return group, SuffixShape(count, group.shape[1], end.position, last_sees_itself=not is_blind)


@dataclass(frozen=True)
class SuffixShape:
    """Suffixes of one length."""

    count: int
    length: int
    last_position: int
    last_sees_itself: bool = True

    @property
    def num_tokens(self) -> int:
        """Tokens of all of them."""
        return self.count * self.length


@dataclass(frozen=True)
class _Layout:
    """What follows from the shapes of the suffixes alone."""

    shapes: tuple[SuffixShape, ...]
    positions: Int[Tensor, " k"]
    """Of all suffix tokens."""
    ends: Int[Tensor, " c"]
    """Which suffix tokens are the last of their suffix."""
    masks: tuple[Float[Tensor, "_ _"], ...]
    """What is added to the scores between the tokens of one suffix, for each length."""
    prefix_mask: Float[Tensor, "p p"]


@functools.lru_cache(maxsize=32)
def _layout(num_prefix: int, shapes: tuple[SuffixShape, ...], device: torch.device) -> _Layout:
    """Lay out suffixes behind a prefix; computed once for all shapes and device."""
    positions, masks = [], []
    for shape in shapes:
        own = [*range(num_prefix, num_prefix + shape.length - 1), shape.last_position]
        positions.append(torch.tensor(own).repeat(shape.count))
        mask = _causal_mask(shape.length)
        if not shape.last_sees_itself:
            mask[-1, -1] = float("-inf")
        masks.append(mask.to(device))
    lengths = torch.tensor([shape.length for shape in shapes for _ in range(shape.count)])
    return _Layout(
        shapes=shapes,
        positions=torch.cat(positions).to(device),
        ends=(lengths.cumsum(0) - 1).to(device),
        masks=tuple(masks),
        prefix_mask=_causal_mask(num_prefix).to(device),
    )


def _causal_mask(length: int) -> Float[Tensor, "l l"]:
    """Return 0 for a token itself and those before it, else -inf."""
    return torch.full((length, length), float("-inf")).triu(diagonal=1)


def _run(
    block: CausalBlock, x: Float[Tensor, "p e"], y: Float[Tensor, "k e"], layout: _Layout
) -> tuple[Float[Tensor, "p e"], Float[Tensor, "k e"]]:
    """Run a block on prefix and suffixes."""
    of_prefix, of_suffixes = block.norm(x), block.norm(y)
    mixed = _attend(block, of_prefix, of_prefix, layout.prefix_mask)
    return block.rest(x, mixed), block.rest(
        y, _attend_from_suffixes(block, of_suffixes, of_prefix, of_suffixes, layout)
    )


def _run_last(
    block: CausalBlock, x: Float[Tensor, "p e"], y: Float[Tensor, "k e"], layout: _Layout
) -> Float[Tensor, "c e"]:
    """Run the last block for the ends alone; the other tokens need no more than keys and values."""
    of_suffixes = block.norm(y)
    mixed = _attend_from_suffixes(block, of_suffixes[layout.ends], block.norm(x), of_suffixes, layout)
    return block.rest(y[layout.ends], mixed)


def _heads(tokens: Tokens, num_heads: int) -> Float[Tensor, "h _ f"]:
    """Split the width of tokens into heads."""
    return tokens.unflatten(-1, (num_heads, -1)).transpose(0, 1)


def _attend(
    block: CausalBlock, asking: Float[Tensor, "q e"], asked: Float[Tensor, "n e"], mask: Float[Tensor, "q n"]
) -> Float[Tensor, "q e"]:
    """Let normed tokens attend to others; the mask is added to the scores."""
    query, key, value = (
        _heads(part, block.num_heads) for part in (block.query(asking), block.key(asked), block.value(asked))
    )  # [h, _, f]
    return ((query @ key.mT + mask.to(query)).softmax(dim=-1) @ value).transpose(0, 1).flatten(1)


def _attend_from_suffixes(
    block: CausalBlock,
    asking: Float[Tensor, "q e"],
    of_prefix: Float[Tensor, "p e"],
    of_suffixes: Float[Tensor, "k e"],
    layout: _Layout,
) -> Float[Tensor, "q e"]:
    """Let normed tokens of the suffixes attend to the prefix and to their own suffix.

    Args:
        block: whose maps to use.
        asking: all tokens of the suffixes, or their ends alone.
        of_prefix: the prefix.
        of_suffixes: all tokens of the suffixes.
        layout: of the suffixes.
    """
    are_ends = len(asking) < len(of_suffixes)
    sizes = [shape.num_tokens for shape in layout.shapes]
    query, key, value, own_key, own_value = (
        _heads(part, block.num_heads)
        for part in (
            block.query(asking), block.key(of_prefix), block.value(of_prefix), block.key(of_suffixes),
            block.value(of_suffixes),
        )
    )  # fmt: skip  # [h, _, f]
    num_asking = [shape.count for shape in layout.shapes] if are_ends else sizes
    scores = query @ key.mT  # [h, q, p]
    parts = (
        query.split(num_asking, 1),
        scores.split(num_asking, 1),
        own_key.split(sizes, 1),
        own_value.split(sizes, 1),
    )
    to_prefix, from_own = [], []
    for shape, mask, q, to_prefix_scores, k, v in zip(layout.shapes, layout.masks, *parts, strict=True):
        each = (shape.count, -1)
        inside = q.unflatten(1, each) @ k.unflatten(1, each).mT + mask.to(q)[-1 if are_ends else 0 :]  # [h, m, _, l]
        weights = torch.cat([to_prefix_scores.unflatten(1, each), inside], dim=-1).softmax(dim=-1)
        to_prefix.append(weights[..., : len(of_prefix)].flatten(1, 2))
        from_own.append((weights[..., len(of_prefix) :] @ v.unflatten(1, each)).flatten(1, 2))
    mixed = torch.cat(to_prefix, dim=1) @ value + torch.cat(from_own, dim=1)
    return mixed.transpose(0, 1).flatten(1)


def fused_maps(weight: Tensor, bias: Tensor, num_heads: int) -> tuple[TokenMap, TokenMap, TokenMap]:
    """Return the maps to queries, keys and values of weights [3 e, e] and biases [3 e], as torch's attention has."""
    width = weight.shape[1]
    scale = (width // num_heads) ** -0.5

    def linear(index: int, normed: Tokens) -> Tokens:
        return F.linear(normed, weight[index * width :][:width], bias[index * width :][:width])

    def query(normed: Tokens) -> Tokens:
        return F.linear(normed, scale * weight[:width], scale * bias[:width])

    return query, functools.partial(linear, 1), functools.partial(linear, 2)
