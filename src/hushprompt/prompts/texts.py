"""Questions and answers of examples as tokens: what an example of an open task has in the place of a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

NO_TOKEN = -1
"""Stands behind the tokens of a text that is shorter than others."""


@dataclass(frozen=True)
class TextTokens:
    """Question and true answer of each of some examples."""

    questions: Int[Tensor, "b q"]
    """All that stands between image or sound and what follows the question; -1 behind it."""
    answers: Int[Tensor, "b k"]
    """With the token that ends an answer; -1 behind it."""

    def of(self, rows: Int[Tensor, " m"] | slice) -> TextTokens:
        """Return those of some of the examples."""
        return TextTokens(self.questions[rows], self.answers[rows])

    def put(self, rows: Int[Tensor, " m"], others: TextTokens) -> TextTokens:
        """Return them with other texts in the place of some."""
        ids = [(self.questions, others.questions), (self.answers, others.answers)]
        return TextTokens(*(_put(own, rows, new) for own, new in ids))

    def wider(self, num: int) -> TextTokens:
        """Return them with so much more padding: the same texts."""
        return TextTokens(*(F.pad(ids, (0, num), value=NO_TOKEN) for ids in (self.questions, self.answers)))

    def to(self, device: str) -> TextTokens:
        """Return them on a device."""
        return TextTokens(self.questions.to(device), self.answers.to(device))


def _put(own: Int[Tensor, "b l"], rows: Int[Tensor, " m"], new: Int[Tensor, "m k"]) -> Int[Tensor, "b w"]:
    """Put tokens of other texts into some rows; all are filled up to the longest."""
    width = max(own.shape[1], new.shape[1])
    own, new = (F.pad(ids, (0, width - ids.shape[1]), value=NO_TOKEN) for ids in (own, new))
    return own.index_copy(0, rows.to(own.device), new)


def padded(texts: Sequence[Sequence[int]], device: str = "cpu") -> Int[Tensor, "b l"]:
    """Return tokens of texts, filled up to the longest.

    >>> padded([[5, 6], [7]]).tolist()
    [[5, 6], [7, -1]]
    """
    width = max(map(len, texts), default=0)
    rows = [[*text, *[NO_TOKEN] * (width - len(text))] for text in texts]
    return torch.tensor(rows, dtype=torch.long, device=device).reshape(len(texts), width)
