"""One turn of a conversation, as a generative model was trained on it: what stands before and behind each part.

The parts are those of the model's own chat template, found by marks in the place of question and answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hushprompt.errors import ConfigError
from hushprompt.models.generative_families import Family

QUESTION, ANSWER = "Hushquestion", "Hushanswer"
"""Marks that no template has."""


@dataclass(frozen=True)
class Turn:
    """Texts around image or sound, question and answer: `before` media `between` question `header` answer `end`."""

    before: str
    between: str
    header: str
    """Without the space before the answer, which belongs to the answer's first token."""
    has_space: bool
    """Whether there is one."""
    end: str
    """Behind the answer; empty: the tokenizer's end token."""


def turn_of(tokenizer: Any, family: Family, chat: str) -> Turn:
    """Return the turn of a text with {media}, {question} and {answer}, of the tokenizer's template, or of the family.

    Raises:
        ConfigError: a part has no place, or not in this order.
    """
    media = "{media}"
    if chat or not getattr(tokenizer, "chat_template", None):
        text = (chat or family.chat).replace("{question}", QUESTION).replace("{answer}", ANSWER)
    else:
        text, media = _rendered(tokenizer, family), family.placeholder
    before, found_media, rest = text.partition(media)
    between, found_question, rest = rest.partition(QUESTION)
    header, found_answer, end = rest.partition(ANSWER)
    if not (found_media and found_question and found_answer and header.strip()):
        raise ConfigError(
            "One turn of a conversation must have the image or sound, then the question, then something that begins "
            f"the answer, then the answer. Set backbone.chat to such a text, for example {family.chat!r}."
        )
    first, last = family.around
    has_space = header.endswith(" ")
    return Turn(before + first, last + between, header.removesuffix(" "), has_space, end.strip())


def _rendered(tokenizer: Any, family: Family) -> str:
    """Write a turn by the tokenizer's chat template."""
    kind = "audio" if family.modality == "audio" else "image"
    asked = [{"type": kind, f"{kind}_url": ""}, {"type": "text", "text": QUESTION}]
    said = [{"type": "text", "text": ANSWER}]
    turn = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    text = tokenizer.apply_chat_template(turn, tokenize=False)
    if ANSWER not in text:  # a template that takes an answer as plain text
        turn[1]["content"] = ANSWER
        text = tokenizer.apply_chat_template(turn, tokenize=False)
    return str(text)
