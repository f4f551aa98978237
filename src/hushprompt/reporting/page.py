"""One self-contained page: no script, no font, no image and no address from outside, which its own policy forbids."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hushprompt.errors import DataError
from hushprompt.reporting import runs
from hushprompt.reporting.markup import join, tag
from hushprompt.reporting.sections import SECTIONS, Report
from hushprompt.reporting.series import pool

MAX_NAMED = 3
"""More methods than this are counted in the page's heading."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def report(folders: Sequence[Path], title: str = "") -> str:
    """Make the page of some run folders; equal records give equal bytes.

    Args:
        folders: run folders, or folders with runs below them.
        title: heading of the page; empty: made of the data sets and methods.

    Raises:
        DataError: a folder holds no finished run, or a file is damaged.
    """
    found = runs.find(folders)
    with_results = [run for run in found.runs if run.results]
    if not with_results:
        raise DataError("No run has a row in its summary.json, so there is nothing to report.")
    whole = Report(title or _title(with_results), with_results, found.unfinished, pool(with_results))
    return _page(whole)


def _page(whole: Report) -> str:
    """Put the sections together."""
    style = Markup((resources.files("hushprompt.reporting") / "page.css").read_text(encoding="utf-8"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", whole.title),
        tag("style", style),
    )
    sections = [made for make in SECTIONS if (made := make(whole)) is not None]
    header = tag("header", tag("h1", whole.title), tag("p", _subtitle(whole.runs), class_="subtitle"))
    footer = tag("footer", "Made by hushprompt from the records of the runs alone.")
    body = tag("body", header, tag("main", join(sections)), footer)
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _title(found: Sequence[runs.Run]) -> str:
    """Name the page by methods and data."""
    methods = list(dict.fromkeys(run.results[-1].title for run in found))
    named = " and ".join(methods) if len(methods) <= MAX_NAMED else f"{len(methods)} methods"
    return f"{named} on {_values(found, 'data', 'name')}"


def _subtitle(found: Sequence[runs.Run]) -> str:
    """Say in one line what was run."""
    clients = _values(found, "partition", "num_clients")
    parts = [
        _values(found, "backbone", "name"),
        f"{_values(found, 'partition', 'name')}" + (f" over {clients} clients" if clients else ""),
        f"{_values(found, 'training', 'num_rounds')} rounds",
        f"seed {', '.join(str(seed) for seed in sorted({run.seed for run in found}))}",
        f"{len(found)} run{'s' if len(found) > 1 else ''}",
    ]
    return " · ".join(part.replace("_", " ") for part in parts)


def _values(found: Sequence[runs.Run], section: str, key: str) -> str:
    """Return the values of a setting over all runs, each once."""
    values: list[Any] = [run.config.get(section, {}).get(key) for run in found]
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None))
