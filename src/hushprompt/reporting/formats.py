"""One grid of texts in five forms: terminal, HTML, Markdown, LaTeX, CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "ε": r"$\varepsilon$", "δ": r"$\delta$", "≥": r"$\geq$",
    "≤": r"$\leq$", "·": r"$\cdot$",
}  # fmt: skip
MAX_WIDTH = 1000
"""More characters than any terminal has in a line."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table of texts; shows itself in a terminal (rich) and in a notebook."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    """Sentences that stand under it."""
    num_names: int
    """Columns on the left that name the row; the others are numbers."""
    name: str = ""
    """A short name to choose it by."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Return the table, or where the terminal is too narrow for it, a list; and the notes."""
        # Columns never shrink, so a table that is wider than the terminal would be cut.
        any_width = options.update(width=MAX_WIDTH)
        tables = [terminal(self), terminal(self, gap=0)]
        fitting = (one for one in tables if Measurement.get(console, any_width, one).maximum <= options.max_width)
        yield next(fitting, listed(self))
        yield from map(Text, self.notes)

    def _repr_html_(self) -> str:
        return html(self)


class WholeTable(Table):
    """A table of rich with texts that may break between words; where names or numbers would be cut, a list."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType | Segment]:
        """Return the table, or the list."""
        columns = [[Text.from_markup(str(cell)).plain for cell in column.cells] for column in self.columns]
        for column, cells in zip(self.columns, columns, strict=True):
            column.no_wrap, column.overflow = column.no_wrap or not any(" " in cell for cell in cells), "fold"
        if Measurement.get(console, options.update(width=MAX_WIDTH), self).minimum <= options.max_width:
            yield from super().__rich_console__(console, options)
            return
        header = tuple(str(column.header).replace("\n", " ") for column in self.columns)
        rows = tuple(zip(*columns, strict=True))
        yield listed(Grid(title="", header=header, rows=rows, notes=(), num_names=1))


def terminal(grid: Grid, gap: int = 1) -> Table:
    """Return a table for rich, with `gap` spaces between columns beside one; the notes are not in it."""
    table = Table(
        title=grid.title or None, box=box.SIMPLE_HEAD, padding=(0, 0, 0, gap), pad_edge=False, show_edge=False,
        title_justify="left", title_style="bold",
    )  # fmt: skip
    for index, name in enumerate(grid.header):
        is_number = index >= grid.num_names
        title = name.replace(" ", "\n") if is_number else name  # the numbers, not their title, decide the width
        table.add_column(escape(title), justify="right" if is_number else "left", no_wrap=True)
    for row in grid.rows:
        table.add_row(*map(escape, row))
    return table


def plain(grid: Grid) -> str:
    """Return the table as text, without the notes."""
    console = Console(width=MAX_WIDTH, file=io.StringIO(), color_system=None, highlight=False)
    with console.capture() as captured:
        console.print(terminal(grid))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def listed(grid: Grid) -> Text:
    """Return one short line a cell, for terminals that a table does not fit."""
    lines = [grid.title] if grid.title else []
    for row in grid.rows:
        lines.append(", ".join(row[: grid.num_names]))
        cells = zip(grid.header[grid.num_names :], row[grid.num_names :], strict=True)
        lines += [f"  {name}: {cell}" for name, cell in cells]
    return Text("\n".join(lines), overflow="fold")


def html(grid: Grid) -> str:
    """Return an HTML table with its title above and its notes below."""
    from markupsafe import escape as quote

    head = "".join(f"<th>{quote(name)}</th>" for name in grid.header)
    body = "".join("<tr>" + "".join(f"<td>{quote(cell)}</td>" for cell in row) + "</tr>" for row in grid.rows)
    caption = f"<caption>{quote(grid.title)}</caption>" if grid.title else ""
    notes = "".join(f"<p><small>{quote(note)}</small></p>" for note in grid.notes)
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"


def markdown(grid: Grid) -> str:
    """Return a Markdown table with its title above and its notes below."""
    lines = [f"**{_markdown(grid.title)}**", ""] if grid.title else []
    ruler = ["---" if index < grid.num_names else "---:" for index in range(len(grid.header))]
    for row in (grid.header, ruler, *grid.rows):
        lines.append("| " + " | ".join(_markdown(text) if row is not ruler else text for text in row) + " |")
    for note in grid.notes:
        lines += ["", _markdown(note)]
    return "\n".join(lines) + "\n"


def latex(grid: Grid, label: str = "") -> str:
    """Return a LaTeX table: a caption of one line, a label, and the notes in small print below.

    It needs the package booktabs; significant differences have a raised star.

    Args:
        grid: the table.
        label: what comes after "tab:"; empty: made from the title.
    """
    columns = "l" * grid.num_names + "r" * (len(grid.header) - grid.num_names)
    title = grid.title or "Accuracy of each method"
    name = label or re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(title[:1].upper() + title[1:] if title[:1].isascii() else title)}}}",
        rf"\label{{tab:{name}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(map(escape_latex, grid.header)) + r" \\",
        r"\midrule",
        *(" & ".join(map(_latex_cell, row)) + r" \\" for row in grid.rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    if grid.notes:
        notes = [rf"{escape_latex(note)}\par" for note in grid.notes]
        lines += ["", r"\medskip", r"\begin{minipage}{\linewidth}\footnotesize", *notes, r"\end{minipage}"]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _latex_cell(text: str) -> str:
    """Write a cell, with a star that stands for significance raised."""
    return rf"{escape_latex(text[:-1])}\textsuperscript{{*}}" if text.endswith("*") else escape_latex(text)


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
