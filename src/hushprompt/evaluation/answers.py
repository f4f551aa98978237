"""How good an answer in words is: exact match, ANLS and VQA accuracy, pure functions of texts.

Exact match and VQA accuracy compare texts as `normalized` writes them, ANLS in small letters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
CONTRACTED = """
'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word for word in CONTRACTED.split() for at, sign in enumerate(word) if sign == "'"
} | {"somebody'd": "somebodyd"}  # fmt: skip
"""What VQA's table mends: words that lack one apostrophe; its one entry that takes an apostrophe out is here, too."""
MARKS = ';/[]"{}()=+\\_-><@`,?!'
"""Punctuation that is not read; apostrophes, colons and signs such as $ and % are."""
THOUSANDS, POINT = re.compile(r"\d,\d"), re.compile(r"\.(?!\d)")
THRESHOLD = 0.5
"""A similarity below which ANLS is 0: another answer, not another spelling."""
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
ANSWER_SHARES = tuple(name for name in ANSWER_SCORES if not name.endswith("loss"))
"""Those that every round's record has."""


def normalized(text: str) -> str:
    """Return a text as answers are compared: small letters, digits for numbers up to ten, no article, no punctuation.

    A mark becomes a space, or nothing where it stands beside a space anywhere in the text or the text has a comma
    within a number; a full stop stays before a digit alone. Apostrophes that were left out are put in at last.

    Source: `vqaEval.py` of VQA's authors (github.com/GT-Vision-Lab/VQA), `processPunctuation`, `processDigitArticle`.

    >>> normalized("The Two red-cars"), normalized("1,000.5 m."), normalized("Dont!")
    ('2 red cars', '1000.5 m', "don't")
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    found, has_thousands = text, THOUSANDS.search(text)
    for mark in MARKS:
        is_apart = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if is_apart or has_thousands else " ")
    words = [NUMBERS.get(word, word) for word in POINT.sub("", found).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def exact_match(answer: str, true: Sequence[str]) -> float:
    """Return 1 where an answer, normalized, is one of the true ones, else 0.

    >>> exact_match("A cat.", ["dog", "cat"]), exact_match("a big cat", ["cat"])
    (1.0, 0.0)
    """
    return float(normalized(answer) in map(normalized, true))


def anls(answer: str, true: Sequence[str]) -> float:
    """Return 1 less the edit distance over the length of the longer text, at the nearest true answer; 0 below 0.5.

    Source: Biten et al. 2019 (arXiv:1905.13648), Eq. 1, as the scripts of ST-VQA and DocVQA compute it: small letters,
    spaces counted once, and 0.5 itself counts, which is 0 in the paper.

    >>> anls("STOP ", ["stop"]), anls("stob", ["stop", "go"]), anls("halt", ["stop"])
    (1.0, 0.75, 0.0)
    """
    nearest = max(_similarity(*(" ".join(text.lower().split()) for text in (answer, one))) for one in true)
    return nearest if nearest >= THRESHOLD else 0.0


def _similarity(one: str, other: str) -> float:
    """Return 1 less the edit distance over the length of the longer text."""
    return 1 - edit_distance(one, other) / (max(len(one), len(other)) or 1)


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

    Source: Antol et al. 2015 (arXiv:1505.00468), section 3, with the averaging of their script. That compares texts
    as they are where all true answers are alike; here they are always normalized, or a capital letter would cost the
    question. NaN below 4 true answers, of which three others could never agree.

    >>> vqa_accuracy("2", ["two", "2", "3", "4"]), vqa_accuracy("yes", ["yes"] * 4), vqa_accuracy("yes", ["yes"])
    (0.5, 1.0, nan)
    """
    if len(true) < LEAST_ANSWERS:
        return math.nan
    is_equal = [normalized(answer) == normalized(one) for one in true]
    each = [min((sum(is_equal) - left_out) / 3, 1.0) for left_out in is_equal]
    return sum(each) / len(each)
