"""Counts in sentences: one is no plural."""

import re

import pytest

import hushprompt as hp
from helpers.made_runs import train
from hushprompt.words import counted

PLURALS = r"\b1 (clients|rounds|releases|references|runs|arms|examples|training examples|prompt files|classes)\b"


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [(1, "release", "1 release"), (0, "release", "0 releases"), (2, "class", "2 classes"), (3, "copy", "3 copies"),
     (2, "day", "2 days"), ("1", "round", "1 round"), ("2, 3", "round", "2, 3 rounds")],
)  # fmt: skip
def test_a_count_has_its_noun_in_the_right_number(number, noun, said):
    assert counted(number, noun) == said


def test_nothing_says_one_releases(tmp_path, hush):
    one = {"name": "iid", "num_clients": 1}
    sampling = {"name": "disjoint", "steps_per_round": 1}
    folder = train(
        tmp_path / "run",
        tmp_path / "cache",
        training={"num_rounds": 1},
        references=[],
        partition=one,
        sampling=sampling,
    )
    run = hp.load(folder)
    assert "1 release;" in run.statement()
    assert "1 round, seed" in repr(run)
    assert "after 0 references" in repr(run)
    page = re.sub("<[^>]*>", "", hp.report(run, tmp_path / "page.html").read_text(encoding="utf-8"))
    shown = "".join(hush(name, str(folder)).out for name in ("show", "privacy", "verify"))
    for text in (run.statement(), repr(run), repr(run.table()), page, " ".join(shown.split())):
        assert not re.search(PLURALS, text), re.search(f".{{30}}{PLURALS}", text)
