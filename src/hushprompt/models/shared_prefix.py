"""Prompts `[start][context][name][end]` with one context for all classes: the beginning is read once."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float
from torch import Tensor

from hushprompt.models.base import SharedPrefixBackbone


class SharedPrefix:
    """The suffixes of all classes, grouped by length."""

    def __init__(self, backbone: SharedPrefixBackbone, names: list[list[int]], device: str) -> None:
        """Embed start, names and end, grouped by length."""
        self._backbone = backbone
        self._start = backbone.embed(torch.tensor(backbone.start_ids, dtype=torch.long, device=device))
        suffixes = [backbone.embed(torch.tensor([*ids, *backbone.end_ids], device=device)) for ids in names]
        lengths = [len(suffix) for suffix in suffixes]
        by_length = sorted(range(len(lengths)), key=lambda label: lengths[label])  # stable
        self._groups = [
            torch.stack([suffixes[label] for label in labels])
            for _, labels in itertools.groupby(by_length, key=lambda label: lengths[label])
        ]  # [count, length, e] for each length
        self._class_order = torch.tensor(by_length, device=device).argsort()

    def encode(self, context: Float[Tensor, "t e"]) -> Float[Tensor, "c d"]:
        """Return unit-norm features in label order."""
        return self._backbone.encode_shared_prefix(self._prefix(context), self._groups)[self._class_order]

    def _prefix(self, context: Float[Tensor, "t e"]) -> Float[Tensor, "p e"]:
        """Return what all prompts begin with."""
        return torch.cat([self._start, context])

    def num_tokens(self, num_ctx: int) -> int:
        """Count the tokens that are read for all classes."""
        return len(self._start) + num_ctx + sum(group.shape[:2].numel() for group in self._groups)
