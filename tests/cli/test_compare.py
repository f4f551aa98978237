import csv
import functools

import pytest

from helpers.fake_runs import with_settings, write_run


@pytest.fixture
def compare(hush, tmp_path, toy_values):
    """Call compare on two methods at two budgets, with two seeds."""
    for seed in (1, 2):
        for method in ("promptfl", "dp_fpl"):
            for epsilon in (2.0, 8.0):
                values = with_settings(toy_values, method, epsilon, seed)
                score = 0.5 + 0.01 * seed * (method == "dp_fpl")
                write_run(tmp_path / "runs" / f"{method}-{epsilon}-{seed}", values, [(score, 0.4)])
    return functools.partial(hush, "compare")


def test_a_folder_of_runs_becomes_a_table(compare):
    out = compare("runs").out
    assert "51.5 ± 0.7" in out
    assert out.count("epsilon is an upper bound") == 1


def test_a_wide_table_is_never_cut_off(compare, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    out = compare("runs", "--against", "promptfl").out
    assert "…" not in out
    assert "local: difference in points to promptfl of the same epsilon" in out


@pytest.mark.parametrize(("name", "words"), [("t.md", "| method | epsilon |"), ("t.tex", r"\toprule")])
def test_the_ending_of_the_file_says_the_form(compare, tmp_path, name, words):
    compare("runs", "-o", name, "--columns", "epsilon")
    written = (tmp_path / name).read_text()
    assert (words if name == "t.tex" else "| method | epsilon 8 | epsilon 2 |") in written
    assert "eighbor accuracy by epsilon" in written
    assert written.count("epsilon is an upper bound") == 1


def test_csv_has_a_line_for_each_group_of_all_tables(compare, tmp_path):
    compare("runs", "--by", "privacy.epsilon", "--against", "promptfl", "-o", "t.csv")
    lines = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert [(line["table"], line["method"]) for line in lines] == [
        ("privacy.epsilon = 2", "dp_fpl"), ("privacy.epsilon = 2", "promptfl"),
        ("privacy.epsilon = 8", "dp_fpl"), ("privacy.epsilon = 8", "promptfl"),
    ]  # fmt: skip
    assert float(lines[0]["local_difference"]) == pytest.approx(0.015)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["runs", "--against", "promptlf"], "no row is that"),
        (["runs", "--columns", "rank"], "'rank' names no setting"),
        (["runs", "--by", "privacy.epsilom"], "Did you mean 'privacy.epsilon'"),
        (["runs", "--test", "z"], "test must be one of t, sign-flip"),
        (["runs", "--table", "best"], "table must be one of scores"),
        (["runs", "--score", "best"], "score must be one of local"),
        (["runs", "-o", "table"], "name a file that ends in .md"),
        (["nowhere"], "holds no run"),
    ],
)
def test_a_mistake_gets_one_sentence_and_status_2(compare, args, message):
    status, _, err = compare(*args, ok=False)
    assert (status, message in err) == (2, True), err


def test_one_table_may_be_chosen(compare, tmp_path):
    compare("runs", "--against", "promptfl", "--table", "neighbor-differences", "-o", "t.tex")
    written = (tmp_path / "t.tex").read_text()
    assert written.count(r"\begin{tabular}") == 1
    assert "Neighbor: difference in points" in written
