"""Measures of answers in words, against values worked out by hand."""

import math

import pytest
import torch

from hushprompt.evaluation.answers import anls, edit_distance, exact_match, normalized, vqa_accuracy
from hushprompt.evaluation.evaluate import evaluate_answers
from hushprompt.evaluation.splits import ClientSplit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" The  Cat. ", "cat"), ("two-tone", "2 tone"), ("the", ""), ("None", "0"), ("yes/no", "yes no"),
        ("1,000", "1000"), ("3.5", "3.5"), ("3.", "3"), (".5", ".5"), ("U.S.A.", "usa"), ("a\nb.\tc", "b c"),
        # A mark becomes a space; nothing if it stands beside a space somewhere, or a number of the text has a comma.
        ("red,blue", "red blue"), ("red, blue", "red blue"), ("red-ish - or-ange", "redish orange"),
        ("e-mail 1,000", "email 1000"), ("10:30 $5 100%", "10:30 $5 100%"),
        # Apostrophes are put in where the table has the word, and stay where they are.
        ("dont", "don't"), ("Don't", "don't"), ("what's", "what's"), ("whats", "what's"), ("cat's", "cat's"),
        ("wouldnt've", "wouldn't've"), ("y'alld've", "y'all'd've"), ("ow's'at", "'ow's'at"), ("wouldntve", "wouldntve"),
        # Odd entries of the table: one goes the other way, some words are not in it, and "Im" is small by then.
        ("somebody'd", "somebodyd"), ("shes", "shes"), ("lets", "lets"), ("Im", "im"), ("its", "its"),
    ],
)  # fmt: skip
def test_small_differences_in_writing_are_none(text, expected):
    """Worked out by hand from the rules of the authors' script."""
    assert normalized(text) == expected


def test_exact_match_asks_for_one_of_the_true_answers():
    assert exact_match("A dog!", ["cat", "dog"]) == 1
    assert exact_match("dogs", ["cat", "dog"]) == 0
    assert exact_match("It isnt", ["it isn't"]) == 1


@pytest.mark.parametrize(
    ("answer", "true", "expected"),
    [
        ("Paris", ["paris"], 1.0),
        ("pariss", ["paris", "rome"], 1 - 1 / 6),  # one letter of six
        ("abcd", ["abxy"], 0.5),  # half of the letters: the threshold itself counts, as in the scripts
        ("abcde", ["abxyz"], 0.0),
        ("Two  words ", ["two words"], 1.0),
        ("", ["no"], 0.0),
    ],
)
def test_anls_is_the_similarity_to_the_nearest_answer_or_nothing(answer, true, expected):
    assert anls(answer, true) == pytest.approx(expected)
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3


@pytest.mark.parametrize(("num_equal", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_with_ten_answers_is_that_of_the_authors_script(num_equal, expected):
    """For k of ten equal: (10 - k) / 10 min(k / 3, 1) + k / 10 min((k - 1) / 3, 1)."""
    true = ["red"] * num_equal + ["blue"] * (10 - num_equal)
    assert vqa_accuracy("Red", true) == pytest.approx(expected)
    assert math.isnan(vqa_accuracy("red", true[:3]))


def test_vqa_accuracy_normalizes_both_sides():
    """Of "2" by three, one who says "two" sees two others: (7 x 1 + 3 x 2/3) / 10."""
    true = ["2", "two", "Two."] + ["no"] * 4 + ["3"] * 3
    assert vqa_accuracy("the two", true) == pytest.approx(0.9)


def test_measures_become_means_over_own_questions_and_the_others():
    measures = {
        0: torch.tensor([[1.0, 2.0, 1.0, math.nan], [0.0, 4.0, 0.5, 0.3], [0.0, 6.0, 0.0, 0.9]], dtype=torch.float64),
        1: torch.tensor([[0.0, 1.0, 0.2, math.nan], [1.0, 2.0, 1.0, 1.0], [1.0, 3.0, 1.0, 0.0]], dtype=torch.float64),
    }
    everyone = torch.arange(3).numpy()
    splits = (ClientSplit(0, everyone[:1], everyone), ClientSplit(1, everyone[1:], everyone))
    scores = evaluate_answers(measures.__getitem__, splits)
    assert (scores.local, scores.neighbor, scores.worst_client) == (1.0, 0.0, 1.0)
    first, second = scores.clients
    assert (first.loss, first.neighbor_loss, second.loss, second.neighbor_loss) == (2.0, 5.0, 2.5, 1.0)
    assert (first.anls, first.neighbor_anls) == (1.0, 0.25)
    assert (first.vqa_accuracy, first.neighbor_vqa_accuracy) == (None, pytest.approx(0.6))
    assert (scores.vqa_accuracy, scores.neighbor_vqa_accuracy) == (0.5, pytest.approx(0.6))
    assert scores.loss == 2.25
    assert scores.per_class == ()
    assert math.isnan(scores.calibration_error)
