import io
import math
import re

import pytest
from rich.console import Console

from hushprompt.errors import ConfigError
from hushprompt.reporting.result_table import result_table
from hushprompt.runs.records import ArmSummary

STATEMENT = "epsilon = 8 at delta = 1e-05 for one example ... (add_remove) ...; accountant: PLD."
PRIVACY = {
    "arms": [{"arm": "dp_fpl, epsilon 8", "audiences": {"personal": {"statement": STATEMENT}}}],
    "server": "The server is trusted.",
    "several_arms": "Each arm is its own.",
}


def row(method="dp_fpl", title="DP-FPL", epsilon=7.9954, local=0.6543, **changes):
    values = {
        "arm": method, "method": method, "title": title, "epsilon": epsilon, "delta": 1e-5, "audience": "personal",
        "local": local, "neighbor": 0.5, "harmonic_mean": 0.567, "worst_client": 0.1, "calibration_error": 0.1,
        "seconds": 12.3, "seed": 1, "num_rounds": 3, "per_client": [], "per_class": [],
    }  # fmt: skip
    return ArmSummary(**{**values, **changes})


ROWS = [row("random_prompt", "untrained random context", None), row(epsilon=math.inf), row()]


def rendered(rows, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(result_table(rows, PRIVACY))
    return console.export_text()


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_every_name_and_number_is_whole_however_narrow_the_terminal(width):
    text = rendered(ROWS, width)
    for part in ("65.4", "50.0", "56.7", "10.0", "8", "inf", "harmonic", "worst", "12"):
        assert re.search(rf"(^|\s){re.escape(part)}(\s|$)", text), part
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_the_table_fits_80_columns_with_a_line_an_arm():
    lines = rendered(ROWS).splitlines()
    assert any(re.fullmatch(r"untrained random context +65\.4 +50\.0 +56\.7 +10\.0 +- +12 *", line) for line in lines)
    assert any(re.fullmatch(r"DP-FPL without noise +65\.4 +50\.0 +56\.7 +10\.0 +inf +12 *", line) for line in lines)


def test_under_the_table_epsilon_has_all_that_gives_it_meaning():
    table = result_table(ROWS, PRIVACY)
    for text in (" ".join(rendered(ROWS).split()), "\n".join(table.notes)):
        assert STATEMENT in text
        assert "The server is trusted." in text
        assert "holder of a client's personal prompt" in text


def test_a_notebook_shows_the_table_and_its_notes_and_no_name_is_markup():
    html = result_table([row(title="<b>DP</b> [red]")], PRIVACY)._repr_html_()
    assert "<td>65.4</td>" in html
    assert "&lt;b&gt;DP&lt;/b&gt; [red]" in html
    assert STATEMENT in html
    assert "<b>DP</b> [red]" in rendered([row(title="<b>DP</b> [red]")])


def test_rows_are_numbers_and_a_frame_has_them(monkeypatch):
    table = result_table(ROWS, PRIVACY)
    assert [(r["epsilon"], r["local"]) for r in table.rows] == [(None, 0.6543), (math.inf, 0.6543), (7.9954, 0.6543)]
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ConfigError, match="pip install pandas"):
        table.frame()


def test_a_frame_has_a_line_an_arm():
    pytest.importorskip("pandas")
    frame = result_table(ROWS, PRIVACY).frame()
    assert frame["local"].tolist() == [0.6543] * 3
    assert STATEMENT in "\n".join(frame.attrs["notes"])


def test_scores_on_new_classes_get_a_table_of_their_own():
    text = rendered([row(base=0.61, new=0.42, base_new_harmonic_mean=0.5)])
    for part in ("61.0", "42.0", "new", "nobody trained"):
        assert part in text
