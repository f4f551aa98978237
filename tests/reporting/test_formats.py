import csv
import dataclasses
import io
import shutil
import subprocess

import pytest
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
    cells = r"50\% \#\{x\}\textasciitilde{}\textasciicircum{}\textbackslash{} & 53.3 $\pm$ 0.3\textsuperscript{*} \\"
    assert rf"A \& B\_1 & {cells}" in text
    assert r"\begin{tabular}{llr}" in text
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == 1
    assert text.count(r"\begin") == text.count(r"\end") == 3


def test_latex_has_a_caption_of_one_line_a_label_and_its_notes_below_the_table():
    text = formats.latex(GRID)
    assert r"\caption{By data\_set}" in text
    assert r"\label{tab:by-data-set}" in text
    assert r"\label{tab:mine}" in formats.latex(GRID, "mine")
    assert text.index(r"\end{tabular}") < text.index(r"A note with 100 \% and \_x\_.") < text.index(r"\end{table}")


@pytest.mark.skipif(
    shutil.which("pdflatex") is None, reason="no pdflatex; get one with: apt-get install texlive-latex-base"
)
def test_latex_compiles(tmp_path):
    signs = dataclasses.replace(GRID, title="ε ≥ 2", rows=(("~^\\{}$&#_%<>|", "δ ≤ 1 · 2", "-"), *GRID.rows))
    tables = formats.latex(GRID) + formats.latex(signs)
    whole = r"\documentclass{article}\usepackage{booktabs}\begin{document}" + tables + r"\end{document}"
    (tmp_path / "t.tex").write_text(whole, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "t.pdf").read_bytes().startswith(b"%PDF")


def test_html_is_escaped():
    text = formats.html(GRID)
    assert "<td>A &amp; B_1</td>" in text
    assert "<small>A note with 100 % and _x_.</small>" in text


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
