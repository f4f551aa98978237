"""Prompts that begin alike, packed into one sequence: what a causal tower needs to read the beginning once.

`[prefix][suffix of class 1][suffix of class 2]...` is a tree laid flat. The positions of every suffix begin right
behind the prefix, and a mask keeps the branches apart: the prefix is causal, a suffix token sees the whole prefix and
the earlier tokens of its own suffix. So each token attends to what it attends to in a sequence of its own, and features
are equal up to rounding. Any tower that takes position embeddings and an additive mask can be run this way with its own
modules.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

MAX_TOKENS = 512
"""Longest sequence that is packed. Attention is quadratic in it, so many classes go into several sequences."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Packing:
    """How one packed sequence is laid out, behind a prefix of p tokens."""

    positions: Int[Tensor, " l"]
    """Position in its own prompt of every token, the prefix first."""
    mask: Float[Tensor, "l l"]
    """What is added to attention scores: 0 where a row's token sees the column's, else -inf."""
    ends: Int[Tensor, " m"]
    """Where each suffix's last token stands."""


@functools.lru_cache(maxsize=32)
def layout(num_prefix: int, lengths: tuple[int, ...], device: torch.device = CPU) -> Packing:
    """Lay out one prefix and suffixes of the given lengths; computed once for each shape and device.

    >>> layout(2, (1, 2)).positions
    tensor([0, 1, 2, 2, 3])
    >>> (layout(2, (1, 2)).mask == 0).int()
    tensor([[1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 0, 1, 0],
            [1, 1, 0, 1, 1]], dtype=torch.int32)
    """
    within = torch.cat([torch.arange(num_prefix), *(torch.arange(length) for length in lengths)])
    owner = torch.repeat_interleave(torch.tensor([num_prefix, *lengths]))  # 0 is the prefix
    is_earlier = within[:, None] >= within
    is_visible = ((owner[:, None] == owner) & is_earlier) | ((owner[:, None] > 0) & (owner == 0))
    return Packing(
        positions=(within + num_prefix * (owner > 0)).to(device),
        mask=torch.zeros(is_visible.shape).masked_fill(~is_visible, float("-inf")).to(device),
        ends=(num_prefix + torch.tensor(lengths).cumsum(0) - 1).to(device),
    )


def bins(num_prefix: int, lengths: Sequence[int]) -> list[tuple[int, ...]]:
    """Cut the suffixes, in order, into sequences of at most `MAX_TOKENS`; each takes at least one suffix."""
    cut: list[list[int]] = []
    for length in lengths:
        if not cut or num_prefix + sum(cut[-1]) + length > MAX_TOKENS:
            cut.append([])
        cut[-1].append(length)
    return [tuple(group) for group in cut]


def encode_packed(
    run: Callable[[Float[Tensor, "l e"], Packing], Float[Tensor, "m e"]],
    prefix: Float[Tensor, "p e"],
    suffixes: Sequence[Float[Tensor, "_ _ e"]],
) -> Float[Tensor, "c e"]:
    """Run a tower on packed sequences; give what it gives at the end of each suffix, in the order of `suffixes`.

    Args:
        run: takes a packed sequence, without positions, and its layout; gives the tower's output at the ends.
        prefix: [p, e] embedded tokens that all prompts begin with.
        suffixes: one [count, length, e] for each length: what follows the prefix, up to the end token.
    """
    rows = torch.cat([group.flatten(0, 1) for group in suffixes])
    lengths = list(itertools.chain.from_iterable([group.shape[1]] * len(group) for group in suffixes))
    cut = bins(len(prefix), lengths)
    outputs = []
    for inside, own in zip(cut, rows.split([sum(inside) for inside in cut]), strict=True):
        outputs.append(run(torch.cat([prefix, own]), layout(len(prefix), inside, prefix.device)))
    return torch.cat(outputs)
