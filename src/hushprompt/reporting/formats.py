"""One grid of texts in four forms: terminal, Markdown, LaTeX, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table of texts."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    """Sentences that stand under it."""
    num_names: int
    """Columns on the left that name the row; the others are numbers."""


def terminal(grid: Grid) -> Table:
    """Return a table for rich; the notes are not in it."""
    table = Table(
        title=grid.title or None, box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, show_edge=False,
        title_justify="left", title_style="bold",
    )  # fmt: skip
    for index, name in enumerate(grid.header):
        table.add_column(name, justify="left" if index < grid.num_names else "right", no_wrap=True)
    for row in grid.rows:
        table.add_row(*row)
    return table


def markdown(grid: Grid) -> str:
    """Return a Markdown table with its title above and its notes below."""
    lines = [f"**{_markdown(grid.title)}**", ""] if grid.title else []
    ruler = ["---" if index < grid.num_names else "---:" for index in range(len(grid.header))]
    for row in (grid.header, ruler, *grid.rows):
        lines.append("| " + " | ".join(_markdown(text) if row is not ruler else text for text in row) + " |")
    for note in grid.notes:
        lines += ["", _markdown(note)]
    return "\n".join(lines) + "\n"


def latex(grid: Grid) -> str:
    """Return a LaTeX table; needs the package booktabs."""
    columns = "l" * grid.num_names + "r" * (len(grid.header) - grid.num_names)
    body = [" & ".join(map(escape_latex, row)) + r" \\" for row in grid.rows]
    caption = " ".join(text if text.endswith(".") else f"{text}." for text in (grid.title, *grid.notes) if text)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(caption)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(map(escape_latex, grid.header)) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def comma_separated(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return CSV with a header line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *rows])
    return text.getvalue()


def escape_latex(text: str) -> str:
    r"""Write a text so that LaTeX prints it as it is.

    >>> print(escape_latex("50% of {a_b} \\ ± 1"))
    50\% of \{a\_b\} \textbackslash{} $\pm$ 1
    """
    return "".join(LATEX.get(letter, letter) for letter in text)


def _markdown(text: str) -> str:
    """Keep what would end a cell, or start emphasis, from doing so."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("\n", " ")
