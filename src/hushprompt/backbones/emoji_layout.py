"""Where the tokens of prompts that begin alike lie, and who sees whom.

The prefix comes first, then the first tokens of all suffixes, longest suffix first, then the second ones, and so on.
The suffixes that reach a place are the first ones at every place before it, so who sees whom is told by slices.

Axis letters beside the usual ones: n all tokens, p prefix tokens, k suffix tokens, s places of the longest suffix.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor


class Link(NamedTuple):
    """Suffix tokens in a row, each of which sees one token of its own suffix."""

    viewers: slice
    """Who looks, among the suffix tokens that go on."""
    viewer_place: int
    """Where in their suffixes they stand; -1 where they stand at different places."""
    keys: slice
    """At whom, one by one, among all suffix tokens."""
    place: int
    """Where in their suffixes those stand."""


@dataclass(frozen=True)
class Layout:
    """Rows of the tokens."""

    num_prefix: int
    tokens: Int[Tensor, " k"]
    """Which token of the suffixes, end to end, lies where behind the prefix."""
    positions: Int[Tensor, " n"]
    ends: Int[Tensor, " c"]
    """Which suffix tokens are ends, longest suffix first."""
    order: Int[Tensor, " c"]
    """Which of `ends` belongs to which suffix, in the order given."""
    ranked: Int[Tensor, " c"]
    """Which suffix, in the order given, each of `ends` belongs to."""
    partners: Int[Tensor, "k s"]
    """The token at each place of a token's own suffix, among all tokens; the token itself where there is none."""
    is_later: Int[Tensor, "k s"]
    """1 where the token at that place comes later and is not seen, else 0."""
    links: tuple[Link, ...]
    """The first ones, one for each place, are the links of all tokens to themselves."""
    end_links: tuple[Link, ...]
    """Links of the ends alone, one for each place."""

    @property
    def num_places(self) -> int:
        """Length s of the longest suffix."""
        return self.partners.shape[1]


@functools.lru_cache(maxsize=16)
def layout(num_prefix: int, shapes: tuple[tuple[int, int], ...], device: torch.device) -> Layout:
    """Lay out suffixes, given the number and length of those of each length; computed once for each shape."""
    lengths = [length for count, length in shapes for _ in range(count)]
    firsts = [0, *itertools.accumulate(lengths)]
    ranked = sorted(range(len(lengths)), key=lambda suffix: -lengths[suffix])
    places = range(max(lengths))
    counts = [sum(length > place for length in lengths) for place in places]
    starts = [0, *itertools.accumulate(counts)]
    own = [slice(starts[place], starts[place + 1]) for place in places]
    tokens = [(place, rank) for place in places for rank in range(counts[place])]
    row_of = {token: row for row, token in enumerate(tokens)}
    partners = [
        [num_prefix + row_of.get((seen, rank), row_of[place, rank]) for seen in places] for place, rank in tokens
    ]

    def index(values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, device=device)

    return Layout(
        num_prefix=num_prefix,
        tokens=index([firsts[ranked[rank]] + place for place, rank in tokens]),
        positions=index([*range(num_prefix), *(num_prefix + place for place, _ in tokens)]),
        ends=index([row_of[lengths[suffix] - 1, rank] for rank, suffix in enumerate(ranked)]),
        order=index(ranked).argsort(),
        ranked=index(ranked),
        partners=index(partners),
        is_later=index([[int(seen > place) for seen in places] for place, _ in tokens]),
        links=(
            *(Link(own[place], place, own[place], place) for place in places),
            *(
                Link(own[place], place, slice(starts[seen], starts[seen] + counts[place]), seen)
                for place in places
                for seen in range(place)
            ),
        ),
        end_links=tuple(Link(slice(0, counts[seen]), -1, own[seen], seen) for seen in places),
    )
