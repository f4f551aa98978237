"""Greedy decoding: the most likely next token, again and again, for several examples side by side."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from hushprompt.models.generative import GenerativeBackbone
from hushprompt.prompts.packed_answers import TRUNK
from hushprompt.prompts.reading import Past, Reading, behind, follow, visible


class Answer(NamedTuple):
    """What a model says."""

    text: str
    """Without space around it."""
    is_complete: bool
    """Whether the model ended it; False where it was cut off."""


@torch.no_grad()
def greedy(
    backbone: GenerativeBackbone,
    past: Past,
    text: Reading,
    max_tokens: int,
    is_wanted: Callable[[], bool] = lambda: True,
) -> list[Answer]:
    """Return each example's answer, without the token that ends it.

    Keys and values are kept, so each step reads one token an example. Up to rounding, an answer is that of its example
    alone: what others say, and how long, changes nothing.

    Args:
        backbone: the frozen model.
        past: what was read before `text`.
        text: what stands before the answers, up to its last token, which is no padding.
        max_tokens: after which an answer is cut off.
        is_wanted: asked before each token; False ends all answers where they are.
    """
    answers: list[list[int]] = [[] for _ in text.end]
    is_open, stops, reading = [True] * len(answers), backbone.stop_ids, text
    for step in range(max_tokens):
        if not is_wanted():
            break
        seen = behind(past, visible(reading.is_there, torch.full_like(reading.positions[0], TRUNK)))
        hidden, known = backbone.read(reading.embedded, reading.positions, seen, past[0])
        past = known, torch.cat([past[1], reading.is_there], dim=1)
        latest = backbone.log_probs(hidden[:, -1]).argmax(dim=1)
        is_open = _said(answers, is_open, latest, stops)
        if not any(is_open):
            break
        reading = follow(backbone.embed(latest[:, None]), text.end + step, len(text.positions))
    return [Answer(backbone.spell(tokens), not goes_on) for tokens, goes_on in zip(answers, is_open, strict=True)]


def _said(
    answers: list[list[int]], is_open: list[bool], latest: Int[Tensor, " b"], stops: Collection[int]
) -> list[bool]:
    """Add a token to each answer that goes on, and return which still do."""
    goes_on = [was and token not in stops for was, token in zip(is_open, latest.tolist(), strict=True)]
    for answer, token, goes in zip(answers, latest.tolist(), goes_on, strict=True):
        if goes:
            answer.append(token)
    return goes_on
