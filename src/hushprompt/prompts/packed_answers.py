"""Possible answers behind one text, packed side by side: each sees the text and itself, and no other answer.

The last token of an answer predicts nothing, so it is not read: an answer of k tokens needs k - 1 of them.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hushprompt.errors import ConfigError

TRUNK, PADDING = 0, -1
"""Branches of what all answers see, and of what nobody does."""
TOKENS_AT_ONCE = 512
"""Tokens of class names that are read together when examples are scored."""


@dataclass(frozen=True)
class Answers:
    """Answers of r examples, or of all alike (r = 1), c each, filled up with padding."""

    ids: Int[Tensor, "r w"]
    """Tokens that are read."""
    branch: Int[Tensor, "r w"]
    """Which answer each belongs to, from 1."""
    depth: Int[Tensor, "r w"]
    """Place of each in its answer, from 0."""
    targets: Int[Tensor, "r c k"]
    """All tokens of each answer."""
    sources: Int[Tensor, "r c k"]
    """Where each is predicted: 0 for the last token before the answers, else 1 + its place in `ids`."""
    is_target: Bool[Tensor, "r c k"]
    """False for padding."""

    def mean_log_probs(self, log_probs: Float[Tensor, "b p v"]) -> Float[Tensor, "b c"]:
        """Return the mean log-likelihood of each answer's tokens.

        Args:
            log_probs: [b, 1 + w, v] of the next token, behind the last token before the answers and those of `ids`.
        """
        num = len(log_probs)
        rows, ids = (each.flatten(1).expand(num, -1) for each in (self.sources, self.targets))
        found = log_probs[torch.arange(num, device=rows.device)[:, None], rows, ids]
        each = found.unflatten(1, self.targets.shape[1:]).where(self.is_target, 0.0)
        return each.sum(dim=2) / self.is_target.sum(dim=2)

    @property
    def num_read(self) -> int:
        """Tokens w that are read for an example."""
        return self.ids.shape[1]

    def of(self, rows: Int[Tensor, " b"]) -> Answers:
        """Return the answers of some of the examples."""
        names = ("ids", "branch", "depth", "targets", "sources", "is_target")
        return Answers(*(getattr(self, name)[rows] for name in names))


def one_each(ids: Int[Tensor, "b k"]) -> Answers:
    """Return one answer an example from its tokens, with -1 behind them.

    >>> one_each(torch.tensor([[5, 6, 7], [8, -1, -1]])).branch.tolist()
    [[1, 1], [-1, -1]]
    """
    is_target = ids >= 0
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    known = ids.clamp(min=0)
    branch = torch.where(is_target[:, 1:], 1, PADDING)
    return Answers(known[:, :-1], branch, places[:, :-1], known[:, None], places[:, None], is_target[:, None])


def pack(answers: Sequence[Sequence[Sequence[int]]], device: str) -> Answers:
    """Pack the answers of examples, each example with the same number of answers of at least one token.

    >>> pack([[[5, 6, 7], [8, 7]]], "cpu").sources.tolist()
    [[[0, 1, 2], [0, 3, 0]]]
    """
    read = [[token for answer in each for token in answer[:-1]] for each in answers]
    branch = [[at for at, answer in enumerate(each, start=1) for _ in answer[:-1]] for each in answers]
    depth = [[place for answer in each for place in range(len(answer) - 1)] for each in answers]
    sources = []
    for each in answers:
        starts = [sum(len(answer) - 1 for answer in each[:at]) for at in range(len(each))]
        sources.append(
            [[0, *range(start + 1, start + len(answer))] for start, answer in zip(starts, each, strict=True)]
        )
    longest = max(len(answer) for each in answers for answer in each)

    def flat(rows: Sequence[Sequence[int]], fill: int = 0) -> Int[Tensor, "r w"]:
        width = max(map(len, rows))
        return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.long, device=device)

    def deep(rows: Sequence[Sequence[Sequence[int]]]) -> Int[Tensor, "r c k"]:
        filled = [[[*one, *[0] * (longest - len(one))] for one in each] for each in rows]
        return torch.tensor(filled, dtype=torch.long, device=device)

    return Answers(
        ids=flat(read), branch=flat(branch, PADDING), depth=flat(depth), targets=deep(answers), sources=deep(sources),
        is_target=deep([[[1] * len(answer) for answer in each] for each in answers]).bool(),
    )  # fmt: skip


def check_names(class_names: Sequence[str], answers: list[list[int]], *, has_end: bool) -> None:
    """Raise ConfigError unless each class has tokens, and no other class has the same.

    Args:
        class_names: in label order.
        answers: the tokens of each.
        has_end: whether the last token of each ends the answer.
    """
    known: dict[tuple[int, ...], str] = {}
    for name, answer in zip(class_names, answers, strict=True):
        if len(answer) <= has_end:
            raise ConfigError(f"The class name {name!r} has no token under this tokenizer. Give it a name in words.")
        if tuple(answer) in known:
            same = known[tuple(answer)]
            raise ConfigError(f"The classes {same!r} and {name!r} have the same tokens. Give one another name.")
        known[tuple(answer)] = name


def grouped(answers: list[list[int]]) -> list[list[list[int]]]:
    """Cut answers into groups of at most `TOKENS_AT_ONCE` tokens."""
    groups: list[list[list[int]]] = [[]]
    for answer in answers:
        if groups[-1] and sum(map(len, groups[-1])) + len(answer) > TOKENS_AT_ONCE:
            groups.append([])
        groups[-1].append(answer)
    return groups


def with_letters(question: str, class_names: tuple[str, ...]) -> tuple[str, list[str]]:
    """Return the question with a list of the names, and the letters that stand for them."""
    if len(class_names) > len(string.ascii_uppercase):
        raise ConfigError(
            f'backbone.loss = "letters" has a letter for each of at most 26 classes, and there are {len(class_names)}. '
            'Use backbone.loss = "answer" or "classes".'
        )
    letters = list(string.ascii_uppercase[: len(class_names)])
    listed = "\n".join(f"{letter}. {name}" for letter, name in zip(letters, class_names, strict=True))
    return f"{question}\n{listed}\nAnswer with the letter.", letters
