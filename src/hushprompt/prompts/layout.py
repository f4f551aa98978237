"""How class names, a context and a model's own tokens make the prompts of all classes.

The prompt of class y is `[start][context][name tokens of y][end]`, or with the name in the middle or in front of the
context (CoOp, Zhou et al. 2022, arXiv:2109.01134, section 3.2). The model declares start, end and padding. One context
serves all classes [t, e], or every class has its own [c, t, e].
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt.errors import ConfigError
from hushprompt.models.base import Model

NamePosition = Literal["end", "middle", "front"]
"""Where the class name stands: behind the context, between its halves, or before it."""


@dataclass(frozen=True)
class Frame:
    """The embedded prompts of all classes, with padding in the place of the context."""

    tokens: Float[Tensor, "c l e"]
    context_index: Int[Tensor, "c t"]
    """Where each class's context vectors go."""
    end_index: Int[Tensor, " c"]


class PromptLayout:
    """The prompts of some classes under a model's tokenizer."""

    def __init__(self, backbone: Model, class_names: tuple[str, ...], device: str) -> None:
        """Tokenize the class names once.

        Raises:
            ConfigError: a name has no token.
        """
        self._backbone, self._class_names, self._device = backbone, class_names, device
        self._first_names = [backbone.tokenize(name) for name in class_names]
        self._later_names = [backbone.tokenize(f" {name}") for name in class_names]  # behind another word
        for name, ids in zip(class_names, self._later_names, strict=True):
            if not ids:
                raise ConfigError(
                    f"The class name {name!r} has no token under this tokenizer. Give it a name in words."
                )
        self._frames: dict[tuple[int, NamePosition], Frame] = {}
        self.suffixes = Suffixes(backbone, self._later_names, device)

    def check_context(self, num_ctx: int, name_position: NamePosition = "end") -> None:
        """Raise ConfigError, naming the class, if a prompt with `num_ctx` context tokens does not fit the window."""
        sequences = [self._sequence(label, num_ctx, name_position)[0] for label in range(len(self._class_names))]
        self.check_fit(sequences, f"with num_ctx = {num_ctx}", "Use a smaller num_ctx or a shorter name.")

    def check_fit(self, sequences: list[list[int]], what: str, advice: str) -> None:
        """Raise ConfigError for the class whose sequence is the longest, if it is longer than the window."""
        longest = max(range(len(sequences)), key=lambda label: len(sequences[label]))
        needed, window = len(sequences[longest]), self._backbone.capabilities.context_window
        if needed > window:
            raise ConfigError(
                f"The prompt of class {self._class_names[longest]!r} needs {needed} tokens {what}, "
                f"but the text tower takes {window}. {advice}"
            )

    def frame(self, num_ctx: int, name_position: NamePosition) -> Frame:
        """Return the prompts around a context of `num_ctx` vectors."""
        key = (num_ctx, name_position)
        if key not in self._frames:
            self.check_context(num_ctx, name_position)
            pairs = [self._sequence(label, num_ctx, name_position) for label in range(len(self._class_names))]
            tokens, ends = self.padded([ids for ids, _ in pairs])
            context_index = torch.tensor([index for _, index in pairs], dtype=torch.long, device=self._device)
            self._frames[key] = Frame(tokens, context_index, ends)
        return self._frames[key]

    def fill(
        self, context: Float[Tensor, "*c t e"], name_position: NamePosition
    ) -> tuple[Float[Tensor, "c l e"], Int[Tensor, " c"]]:
        """Return one embedded sequence a class, padded, and where each one ends."""
        frame = self.frame(context.shape[-2], name_position)
        rows = torch.arange(len(self._class_names), device=self._device)[:, None]
        each = context.expand(len(self._class_names), -1, -1)
        return frame.tokens.index_put((rows, frame.context_index), each), frame.end_index

    def describe(self, context: Float[Tensor, "*c t e"], name_position: NamePosition) -> str:
        """Say how a prompt is put together, for someone who wants to use a context without this package."""
        can = self._backbone.capabilities
        first = _num_before_name(context.shape[-2], name_position)
        parts = {
            "end": "[context][class name]",
            "middle": f"[first {first} vectors of the context][class name][rest of the context]",
            "front": "[class name][context]",
        }
        start = "[start]" if self._backbone.start_ids else ""
        padding = f"[padding up to {can.context_window} tokens]" if can.sees_padding else ""
        owner = ", one context for each class" if context.ndim == 3 else ""
        return f"{start}{parts[name_position]}[end]{padding}{owner}"

    def padded(self, sequences: list[list[int]]) -> tuple[Float[Tensor, "c l e"], Int[Tensor, " c"]]:
        """Embed sequences, filled up as the model declares, and return where each one ends."""
        can, longest = self._backbone.capabilities, max(len(ids) for ids in sequences)
        length = can.context_window if can.sees_padding else longest
        ends = torch.tensor([len(ids) - 1 for ids in sequences], device=self._device)
        filled = [[*ids, *[self._backbone.pad_id] * (length - len(ids))] for ids in sequences]
        return self._backbone.embed(torch.tensor(filled, device=self._device)), ends

    def _sequence(self, label: int, num_ctx: int, name_position: NamePosition) -> tuple[list[int], list[int]]:
        """Return the token ids of one class's prompt, padding where the context goes, and the places of the context."""
        backbone, first = self._backbone, _num_before_name(num_ctx, name_position)
        name = self._later_names[label] if first or name_position == "end" else self._first_names[label]
        holes = [backbone.pad_id] * num_ctx
        ids = [*backbone.start_ids, *holes[:first], *name, *holes[first:], *backbone.end_ids]
        start = len(backbone.start_ids)
        places = [start + index + (len(name) if index >= first else 0) for index in range(num_ctx)]
        return ids, places


class Suffixes:
    """What follows the context where the name stands at the end: name and end of every class, grouped by length."""

    def __init__(self, backbone: Model, names: list[list[int]], device: str) -> None:
        self._start = backbone.embed(torch.tensor(backbone.start_ids, dtype=torch.long, device=device))
        suffixes = [backbone.embed(torch.tensor([*ids, *backbone.end_ids], device=device)) for ids in names]
        lengths = [len(suffix) for suffix in suffixes]
        by_length = sorted(range(len(lengths)), key=lambda label: lengths[label])  # stable
        self.groups = [
            torch.stack([suffixes[label] for label in labels])
            for _, labels in itertools.groupby(by_length, key=lambda label: lengths[label])
        ]
        """One [count, length, e] for each length."""
        self.class_order = torch.tensor(by_length, device=device).argsort()
        """Where each class is among them."""

    def prefix(self, context: Float[Tensor, "t e"]) -> Float[Tensor, "p e"]:
        """Return what all prompts begin with."""
        return torch.cat([self._start, context])

    def num_tokens(self, num_ctx: int) -> int:
        """Return the number of tokens of one prefix and all suffixes."""
        return len(self._start) + num_ctx + sum(group.shape[:2].numel() for group in self.groups)


def _num_before_name(num_ctx: int, name_position: NamePosition) -> int:
    """Return the number of context vectors before the class name; CoOp halves them, rounding down."""
    return {"end": num_ctx, "middle": num_ctx // 2, "front": 0}[name_position]
