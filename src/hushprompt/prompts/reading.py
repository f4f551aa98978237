"""Parts of sequences, laid out to be read by a language model: what stands where, and what sees what."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hushprompt.models.keys_and_values import KeysAndValues
from hushprompt.prompts.packed_answers import TRUNK

Past = tuple[KeysAndValues, Bool[Tensor, "b p"]]
"""Keys and values of what was read, and which of them are no padding."""


@dataclass(frozen=True)
class Reading:
    """A part of the sequences of b examples, ready to be read."""

    embedded: Float[Tensor, "b l e"]
    positions: Int[Tensor, "d b l"]
    is_there: Bool[Tensor, "b l"]
    """False for padding."""
    end: Int[Tensor, " b"]
    """Position of what follows."""


def follow(
    embedded: Float[Tensor, "b l e"],
    start: Int[Tensor, " b"],
    dims: int,
    is_there: Bool[Tensor, "b l"] | None = None,
) -> Reading:
    """Lay out text from each example's own position on.

    Args:
        embedded: the text, with padding behind it.
        start: position of its first token.
        dims: numbers d that a position has.
        is_there: False for padding; None: there is none.
    """
    num, length = embedded.shape[:2]
    if is_there is None:
        is_there = start.new_ones(num, length, dtype=torch.bool)
    positions = (start[:, None] + torch.arange(length, device=start.device)).expand(dims, -1, -1)
    return Reading(embedded, positions, is_there, start + is_there.sum(dim=1))


def joined(parts: tuple[Reading, ...]) -> Reading:
    """Return parts that follow each other as one."""
    return Reading(
        torch.cat([part.embedded for part in parts], dim=1),
        torch.cat([part.positions for part in parts], dim=2),
        torch.cat([part.is_there for part in parts], dim=1),
        parts[-1].end,
    )


def visible(is_there: Bool[Tensor, "b l"], branch: Int[Tensor, "b l"]) -> Bool[Tensor, "b l l"]:
    """Return what each token sees: itself, and of what stands before it the trunk and its own branch."""
    length = branch.shape[1]
    is_before = torch.ones(length, length, dtype=torch.bool, device=branch.device).tril()
    is_own = (branch[:, None] == TRUNK) | (branch[:, None] == branch[:, :, None])
    itself = torch.eye(length, dtype=torch.bool, device=branch.device)
    return (is_before & is_own & is_there[:, None]) | itself


def behind(past: Past, new: Bool[Tensor, "b l l"]) -> Bool[Tensor, "b l k"]:
    """Return what each new token sees of all: everything that was read before, and of the new what `new` says."""
    earlier = past[1][:, None].expand(-1, new.shape[1], -1)
    return torch.cat([earlier, new], dim=2)
