"""Keys and values of what comes before a prompt, kept in memory: at the tail they are constants of the example.

Each example is read alone when it is first asked for, so that its numbers depend neither on who was in the batch nor on
what was kept: a resumed run, which begins with nothing, has the same bits.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt.models.keys_and_values import KeysAndValues
from hushprompt.prompts.texts import NO_TOKEN

ReadOne = Callable[[Float[Tensor, "1 m e"], Int[Tensor, "1 q"]], KeysAndValues]
"""Reads what comes before one example's prompt, from its image or sound and its question."""


class PrefixCache:
    """The latest examples, as many as fit."""

    def __init__(self, max_mb: int) -> None:
        self._left = max_mb * 2**20
        self._known: dict[bytes, KeysAndValues] = {}
        self._lock = threading.Lock()

    def read(self, media: Float[Tensor, "b m e"], questions: Int[Tensor, "b q"], read_one: ReadOne) -> KeysAndValues:
        """Return keys and values of all layers for a batch, from memory or read now; zeros behind shorter questions."""
        each = []
        for row, ids in zip(media.split(1), questions, strict=True):
            asked = ids[ids != NO_TOKEN][None]
            found, missing = self._one(row, asked, read_one), len(ids) - asked.shape[1]
            each.append(_longer(found, missing) if missing else found)
        return _Stacked(each)

    def _one(self, row: Float[Tensor, "1 m e"], question: Int[Tensor, "1 q"], read_one: ReadOne) -> KeysAndValues:
        """Return an example's own; what was asked for longest ago makes room."""
        digest = hashlib.sha256()
        for part in (row, question):
            digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        key = digest.digest()
        with self._lock:
            if (found := self._known.pop(key, None)) is not None:
                self._known[key] = found  # the latest stands last
                return found
        found = read_one(row, question)
        with self._lock:
            if key not in self._known:  # another thread may have read it meanwhile
                self._known[key] = found
                self._left -= _num_bytes(found)
            while self._left < 0:
                self._left += _num_bytes(self._known.pop(next(iter(self._known))))
        return found


class _Stacked(Sequence[tuple[Tensor, Tensor]]):
    """Keys and values of several examples, put together layer by layer when they are asked for."""

    def __init__(self, each: list[KeysAndValues]) -> None:
        """Take those of each example."""
        self._each = each

    def __len__(self) -> int:
        """Return the number of layers."""
        return len(self._each[0])

    def __getitem__(self, layer: Any) -> Any:
        """Return a layer's."""
        found = [one[layer] for one in self._each]
        return torch.cat([keys for keys, _ in found]), torch.cat([values for _, values in found])


def _longer(of: KeysAndValues, missing: int) -> KeysAndValues:
    """Return keys and values with zeros behind them."""
    return tuple((F.pad(keys, (0, 0, 0, missing)), F.pad(values, (0, 0, 0, missing))) for keys, values in of)


def _num_bytes(of: KeysAndValues) -> int:
    """Return how much memory keys and values take."""
    return sum(tensor.nbytes for layer in of for tensor in layer)
