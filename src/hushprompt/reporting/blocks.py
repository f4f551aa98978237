"""What a page is built of: sections, tables that become cards on a phone, figures with their numbers, a legend."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from markupsafe import Markup

from hushprompt.reporting.markup import join, tag
from hushprompt.reporting.series import Series
from hushprompt.reporting.svg import color_class, line_class, mark


def section(slug: str, title: str, *children: str) -> Markup:
    """Return a section with its heading."""
    heading = tag("h2", title, id=f"{slug}-heading")
    return tag("section", heading, *children, id=slug, aria_labelledby=f"{slug}-heading")


def paragraph(what: str, class_: str | None = None) -> Markup:
    """Return a paragraph."""
    return tag("p", what, class_=class_)


def missing(what: str) -> Markup:
    """Say why there is no figure."""
    return paragraph(what, "missing")


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, is_card: bool = False) -> Markup:
    """Return a table whose first column names its rows.

    Args:
        caption: says what the table holds.
        header: column titles.
        rows: cells, as many a row as there are titles.
        is_card: on a narrow screen, put a row's name on a line of its own and the cells below it.
    """
    head = tag("tr", *(tag("th", title, scope="col", role="columnheader") for title in header), role="row")
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row", role="rowheader"),
            *(tag("td", cell, role="cell") for cell in row[1:]),
            role="row",
        )
        for row in rows
    ]
    # The roles are those of a table by themselves; a browser forgets them where a style makes cards of its rows.
    whole = tag(
        "table",
        tag("caption", caption),
        tag("thead", head, role="rowgroup"),
        tag("tbody", *body, role="rowgroup"),
        role="table",
        class_="cards" if is_card else None,
    )
    return tag("div", whole, class_="scroll", tabindex="0", role="group", aria_label=caption)


def details(summary: str, *children: str) -> Markup:
    """Return what a reader opens on demand."""
    return tag("details", tag("summary", summary), *children)


def figure(slug: str, panels: Sequence[Markup], caption: str, *numbers: Markup, legend: str = "") -> Markup:
    """Return panels side by side, what they show, and the numbers behind them."""
    count = 2 if len(panels) % 2 == 0 else min(len(panels), 3)
    words = tag("div", legend, tag("figcaption", caption), class_="words")
    whole = [
        tag("figure", tag("div", *panels, class_="panels"), words, id=f"{slug}-figure", class_=f"of-{count}"),
        details("The numbers", *numbers) if numbers else Markup(""),
    ]
    return join(whole)


def legend(series: Sequence[Series]) -> Markup:
    """Show the mark and line of every series beside its name."""
    return tag("ul", *(tag("li", sample(s), tag("span", s.name)) for s in series), class_="legend")


def curve_legend(series: Sequence[Series]) -> Markup:
    """Do the same for curves over epsilon: one entry for all budgets of a family."""
    shown: dict[str, Series] = {}
    for s in series:
        if s.has_budget:
            alone = sum(other.family == s.family and other.has_budget for other in series) == 1
            shown.setdefault(s.family, s if alone else dataclasses.replace(s, name=s.family))
        else:
            shown[s.name] = s
    return legend(list(shown.values()))


def sample(s: Series) -> Markup:
    """Draw a series' mark on its line, in the size of a letter."""
    style = line_class(s.style) if s.learns else f"line dashed {color_class(s.style)}"
    line = tag("path", d="M1 8H33", class_=style)
    return tag("svg", line, mark(s.style, 17, 8, ""), class_="sample", viewBox="0 0 34 16", aria_hidden="true")
