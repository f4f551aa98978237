"""Where the tokens of prompts that begin alike lie: the prefix first, then one suffix after the other.

Suffixes of one length lie in succession, so who sees whom in them is told by one view [suffixes, length] of their rows.

Axis letters beside the usual ones: n all tokens, p prefix tokens, k suffix tokens, l tokens of a suffix.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int, Shaped
from torch import Tensor


class Group(NamedTuple):
    """Suffixes of one length."""

    length: int
    suffixes: slice
    """Which ones."""
    tokens: slice
    """Theirs, among all suffix tokens."""

    def of_tokens(self, values: Shaped[Tensor, "k *x"]) -> Shaped[Tensor, "c l *x"]:
        """View what there is for each suffix token."""
        return values[self.tokens].unflatten(0, (-1, self.length))

    def of_ends(self, values: Shaped[Tensor, "q *x"]) -> Shaped[Tensor, "c 1 *x"]:
        """View what there is for each suffix's last token alone."""
        return values[self.suffixes].unsqueeze(1)


def groups(shapes: Sequence[tuple[int, int]]) -> tuple[Group, ...]:
    """Lay out suffixes, given the number and length of those of each length."""
    laid_out, suffix, token = [], 0, 0
    for count, length in shapes:
        tokens = slice(token, token + count * length)
        laid_out.append(Group(length, slice(suffix, suffix + count), tokens))
        suffix, token = suffix + count, tokens.stop
    return tuple(laid_out)


@dataclass(frozen=True)
class Layout:
    """Rows of the tokens."""

    num_prefix: int
    groups: tuple[Group, ...]
    positions: Int[Tensor, " n"]
    ends: Int[Tensor, " c"]
    """Which suffix tokens are ends."""
    ends_are_alike: bool
    """Suffixes of one length end in the same vector."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens n."""
        return len(self.positions)

    @property
    def longest(self) -> int:
        """Length of the longest suffix."""
        return max(group.length for group in self.groups)


@functools.lru_cache(maxsize=16)
def layout(
    num_prefix: int, shapes: tuple[tuple[int, int], ...], device: torch.device, *, ends_are_alike: bool = False
) -> Layout:
    """Lay out prompts, given the number and length of the suffixes of each length; computed once for each shape."""
    places = [place for count, length in shapes for _ in range(count) for place in range(length)]
    behind = [*places[1:], 0]  # a new suffix begins, or there is none
    return Layout(
        num_prefix=num_prefix,
        groups=groups(shapes),
        positions=torch.tensor([*range(num_prefix), *(num_prefix + place for place in places)], device=device),
        ends=torch.tensor([row for row, place in enumerate(behind) if place == 0], device=device),
        ends_are_alike=ends_are_alike,
    )
