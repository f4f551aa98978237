"""The causal text tower: prompts that begin alike are read with their common beginning once.

In a causal tower no token sees what follows it. The prompts `[start][context][name][end]` of all classes have the same
start and context, so these tokens, the prefix, are computed once; each class adds its suffix, whose tokens see the
whole prefix and the earlier tokens of their own suffix. Suffixes of one length are computed together. This is exact up
to rounding; `encode_prompts` of a backbone, one padded sequence a class, is the reference.

A model says what its blocks do with tokens; who attends to whom is decided here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class CausalBlock:
    """One transformer block, as functions of any number of tokens."""

    num_heads: int
    norm: Callable[[Float[Tensor, "n e"]], Float[Tensor, "n e"]]
    """The norm before attention."""
    query: Callable[[Float[Tensor, "n e"]], Float[Tensor, "n e"]]
    """Queries of normed tokens, scaled."""
    key_value: Callable[[Float[Tensor, "n e"]], tuple[Float[Tensor, "n e"], Float[Tensor, "n e"]]]
    """Keys and values of normed tokens."""
    rest: Callable[[Float[Tensor, "n e"], Float[Tensor, "n e"]], Float[Tensor, "n e"]]
    """The block's output from its input and from what attention mixed."""


@dataclass(frozen=True)
class CausalTower:
    """A text tower whose feature is read at the end token."""

    embed: Callable[[Float[Tensor, "n e"], Int[Tensor, " n"]], Float[Tensor, "n e"]]
    """Adds position embeddings to embedded tokens, given the position of each."""
    blocks: tuple[CausalBlock, ...]
    head: Callable[[Float[Tensor, "c e"]], Float[Tensor, "c d"]]
    """Final norm and projection."""

    def encode(self, prefix: Float[Tensor, "p e"], suffixes: Sequence[Float[Tensor, "_ _ e"]]) -> Float[Tensor, "c d"]:
        """Encode prompts that begin alike; differentiable in `prefix`, also for batched gradients.

        Args:
            prefix: [p, e] embedded tokens that all prompts begin with.
            suffixes: one [count, length, e] for each length: what follows the prefix, up to the end token.

        Returns:
            [c, d] features in the order of `suffixes`, not normalized.
        """
        shapes = tuple((len(group), group.shape[1]) for group in suffixes)
        places, ends = _places(shapes, prefix.device)
        x = self.embed(prefix, torch.arange(len(prefix), device=prefix.device))
        y = self.embed(torch.cat([group.flatten(0, 1) for group in suffixes]), len(prefix) + places)
        *blocks, last = self.blocks
        for block in blocks:
            x, y = _run(block, x, y, shapes)
        return self.head(_run_last(last, x, y, ends, shapes))


@functools.lru_cache(maxsize=32)
def _places(shapes: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Int[Tensor, " k"], Int[Tensor, " c"]]:
    """Return the place of each suffix token in its suffix, and which tokens are ends."""
    places = torch.tensor([place for count, length in shapes for _ in range(count) for place in range(length)])
    lengths = torch.tensor([length for count, length in shapes for _ in range(count)])
    return places.to(device), (lengths.cumsum(0) - 1).to(device)


def _run(
    block: CausalBlock, x: Float[Tensor, "p e"], y: Float[Tensor, "k e"], shapes: Sequence[tuple[int, int]]
) -> tuple[Float[Tensor, "p e"], Float[Tensor, "k e"]]:
    """Run a block on prefix and suffixes."""
    of_prefix, of_suffixes = block.norm(x), block.norm(y)
    shared, own = block.key_value(of_prefix), block.key_value(of_suffixes)
    from_prefix = _causal(block.num_heads, block.query(of_prefix), shared)
    from_suffixes = _attend(block.num_heads, block.query(of_suffixes), shared, own, shapes)
    return block.rest(x, from_prefix), block.rest(y, from_suffixes)


def _run_last(
    block: CausalBlock,
    x: Float[Tensor, "p e"],
    y: Float[Tensor, "k e"],
    ends: Int[Tensor, " c"],
    shapes: Sequence[tuple[int, int]],
) -> Float[Tensor, "c e"]:
    """Run the last block for the end tokens alone; the others are looked at and need no more than keys and values."""
    normed = block.norm(y)
    shared, own = block.key_value(block.norm(x)), block.key_value(normed)
    return block.rest(y[ends], _attend(block.num_heads, block.query(normed[ends]), shared, own, shapes))


Pair = tuple[Float[Tensor, "_ e"], Float[Tensor, "_ e"]]
"""Keys and values."""


def _causal(num_heads: int, query: Float[Tensor, "p e"], shared: Pair) -> Float[Tensor, "p e"]:
    """Let every token of the prefix attend to itself and to what comes before it."""
    query, key, value = (part.unflatten(-1, (num_heads, -1)).transpose(0, 1) for part in (query, *shared))  # [h, p, f]
    weights = (query @ key.mT + _mask(len(key[0]), query)).softmax(dim=-1)
    return (weights @ value).transpose(0, 1).flatten(1)


def _attend(
    num_heads: int, query: Float[Tensor, "q e"], shared: Pair, own: Pair, shapes: Sequence[tuple[int, int]]
) -> Float[Tensor, "q e"]:
    """Let tokens of suffixes attend to the prefix and, causally, to their own suffix.

    Args:
        num_heads: h.
        query: of all tokens of the suffixes, or of their ends alone.
        shared: keys and values of the prefix.
        own: those of all tokens of the suffixes.
        shapes: number and length of the suffixes of each length.
    """

    def heads(part: Float[Tensor, "n e"]) -> Float[Tensor, "h n f"]:
        return part.unflatten(-1, (num_heads, -1)).transpose(0, 1)

    are_ends = len(query) < len(own[0])
    query, (key, value), (own_key, own_value) = heads(query), map(heads, shared), map(heads, own)
    sizes = [count * length for count, length in shapes]
    asking = [count for count, _ in shapes] if are_ends else sizes
    from_shared, mixed = [], []
    to_shared = query @ key.mT  # [h, q, p]
    parts = zip(
        shapes, query.split(asking, 1), to_shared.split(asking, 1), own_key.split(sizes, 1), own_value.split(sizes, 1),
        strict=True,
    )  # fmt: skip
    for (count, length), q, scores, k, v in parts:
        each = (count, -1)
        inside = q.unflatten(1, each) @ k.unflatten(1, each).mT  # [h, c, l or 1, l]
        if not are_ends:
            inside = inside + _mask(length, inside)
        weights = torch.cat([scores.unflatten(1, each), inside], dim=-1).softmax(dim=-1)
        from_shared.append(weights[..., : key.shape[1]].flatten(1, 2))
        mixed.append((weights[..., key.shape[1] :] @ v.unflatten(1, each)).flatten(1, 2))
    total = torch.cat(from_shared, dim=1) @ value + torch.cat(mixed, dim=1)
    return total.transpose(0, 1).flatten(1)


def _mask(length: int, like: Tensor) -> Float[Tensor, "l l"]:
    """Return what is added to causal scores: 0 for a token itself and those before it, else -inf."""
    return like.new_full((length, length), float("-inf")).triu(diagonal=1)
