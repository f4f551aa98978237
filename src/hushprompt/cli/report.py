"""The command that makes a page of finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import hushprompt as hp
from hushprompt.cli.console import console


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of run folders.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Heading of the page; none: made of data and methods.")] = "",
) -> None:
    """Make one self-contained HTML page of finished runs, from their records alone."""
    page = hp.report(folders, out, title=title)
    console.print(f"  {page} ({page.stat().st_size / 1000:.0f} kB)", soft_wrap=True)
