"""Keys and values of a language model's layers: what was read before, and what a pass adds to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

KeysAndValues = Sequence[tuple[Tensor, Tensor]]
"""Of each layer, [b, heads, length, width]."""


class Joining:
    """What the library takes for a cache: it joins new keys and values to those that were read before."""

    def __init__(self, past: KeysAndValues, *, keeps: bool) -> None:
        """Begin behind `past`; unless `keeps`, what is joined is forgotten as soon as its layer has it."""
        self.joined: list[tuple[Tensor, Tensor]] = []
        self._past, self._keeps = past, keeps

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return keys and values of all tokens in a layer."""
        if len(self._past):
            before = self._past[layer_idx]
            keys, values = torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)
        if self._keeps:
            self.joined.append((keys, values))
        return keys, values
