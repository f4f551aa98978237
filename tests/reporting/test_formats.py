import csv
import io

from rich.console import Console

from hushprompt.reporting import formats
from hushprompt.reporting.formats import Grid

GRID = Grid(
    title="by data_set",
    header=("method", "keep_residual", "local"),
    rows=(("A & B_1", "50% #{x}~^\\", "53.3 ± 0.3*"), ("a|b", "$", "1")),
    notes=("A note with 100 % and _x_.", "Another"),
    num_names=2,
)


def test_latex_is_escaped_and_has_booktabs_rules():
    text = formats.latex(GRID)
    assert r"A \& B\_1 & 50\% \#\{x\}\textasciitilde{}\textasciicircum{}\textbackslash{} & 53.3 $\pm$ 0.3* \\" in text
    assert r"\begin{tabular}{llr}" in text
    assert r"\caption{by data\_set. A note with 100 \% and \_x\_. Another.}" in text
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == 1
    assert text.count(r"\begin") == text.count(r"\end") == 2


def test_markdown_keeps_its_cells():
    lines = formats.markdown(GRID).splitlines()
    assert lines[0] == "**by data\\_set**"
    assert lines[2:4] == ["| method | keep\\_residual | local |", "| --- | --- | ---: |"]
    assert lines[5] == "| a\\|b | $ | 1 |"
    assert "53.3 ± 0.3\\*" in lines[4]


def test_the_terminal_shows_every_cell():
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(formats.terminal(GRID))
    text = console.export_text()
    assert all(cell in text for row in (GRID.header, *GRID.rows) for cell in row)


def test_csv_reads_back():
    text = formats.comma_separated(["a", "b"], [['x, "y"', 1.5], ["", "z\nz"]])
    assert list(csv.reader(io.StringIO(text))) == [["a", "b"], ['x, "y"', "1.5"], ["", "z\nz"]]
