"""How good an answer in words is: exact match, ANLS and VQA accuracy, pure functions of texts.

Words are compared as the script of VQA compares them: in small letters, without punctuation and articles, and with
digits for the numbers up to ten. What that script does to words like "dont" is left out.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, fields

ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
MARKS = re.compile(
    rf"(?<!\d)[.,]|[.,](?!\d)|(?<=\d),(?=\d)|[{re.escape(string.punctuation.replace('.', '').replace(',', ''))}]"
)
"""Punctuation, but for the point of a number."""
THRESHOLD = 0.5
"""A distance from which on ANLS is 0: another answer, not another spelling."""
LEAST_ANSWERS = 4
"""True answers without which VQA accuracy cannot reach 1."""


@dataclass(frozen=True, kw_only=True)
class AnswerScores:
    """Where examples have questions: means over the own ones, and over the other clients'; None else.

    Accuracies are shares of exact matches then.
    """

    loss: float | None = None
    """Mean negative log-likelihood of a token of the true answer."""
    neighbor_loss: float | None = None
    anls: float | None = None
    neighbor_anls: float | None = None
    vqa_accuracy: float | None = None
    """None where no question has enough true answers."""
    neighbor_vqa_accuracy: float | None = None


ANSWER_SCORES = tuple(field.name for field in fields(AnswerScores))


def plain(text: str) -> str:
    """Return a text as answers are compared.

    >>> plain("The Two red-cars, 1,000.5 m."), plain("don't")
    ('2 red cars 1000.5 m', 'dont')
    """
    text = text.lower().replace("'", "")
    text = MARKS.sub(lambda mark: "" if mark[0] in ",." else " ", text)
    return " ".join(NUMBERS.get(word, word) for word in text.split() if word not in ARTICLES)


def exact_match(answer: str, true: Sequence[str]) -> float:
    """Return 1 where an answer is one of the true ones, else 0.

    Source: Rajpurkar et al. 2016 (arXiv:1606.05250), section 6.1.

    >>> exact_match("A cat.", ["dog", "cat"]), exact_match("a big cat", ["cat"])
    (1.0, 0.0)
    """
    return float(plain(answer) in map(plain, true))


def anls(answer: str, true: Sequence[str]) -> float:
    """Return 1 less the edit distance over the length of the longer text, at the nearest true answer; 0 from 0.5 on.

    Source: Biten et al. 2019 (arXiv:1905.13648), Eq. 1; case and space around are not looked at.

    >>> anls("STOP ", ["stop"]), anls("stob", ["stop", "go"]), anls("halt", ["stop"])
    (1.0, 0.75, 0.0)
    """
    return max(_nearness(answer.strip().lower(), one.strip().lower()) for one in true)


def _nearness(one: str, other: str) -> float:
    """Return the similarity of two texts, cut off."""
    distance = edit_distance(one, other) / (max(len(one), len(other)) or 1)
    return 1 - distance if distance < THRESHOLD else 0.0


def edit_distance(one: str, other: str) -> int:
    """Return the least number of letters that are put in, taken out or changed (Levenshtein).

    >>> edit_distance("kitten", "sitting")
    3
    """
    before = list(range(len(other) + 1))
    for row, letter in enumerate(one, start=1):
        now = [row]
        for column, wanted in enumerate(other):
            now.append(min(before[column + 1] + 1, now[column] + 1, before[column] + (letter != wanted)))
        before = now
    return before[-1]


def vqa_accuracy(answer: str, true: Sequence[str]) -> float:
    """Return min(k / 3, 1), k true answers being equal to this one, averaged over leaving one true answer out.

    Source: Antol et al. 2015 (arXiv:1505.00468), section 3, with the averaging of their script. NaN below 4 true
    answers, of which three others could never agree.

    >>> vqa_accuracy("2", ["two", "2", "3", "4"]), vqa_accuracy("yes", ["yes"] * 4), vqa_accuracy("yes", ["yes"])
    (0.5, 1.0, nan)
    """
    if len(true) < LEAST_ANSWERS:
        return math.nan
    is_equal = [plain(answer) == plain(one) for one in true]
    each = [min((sum(is_equal) - left_out) / 3, 1.0) for left_out in is_equal]
    return sum(each) / len(each)
