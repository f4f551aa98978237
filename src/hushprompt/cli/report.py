"""The command that makes a page of finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hushprompt import files
from hushprompt.cli.console import console
from hushprompt.errors import DataError
from hushprompt.reporting import page


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of run folders.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Heading of the page; none: made of data and methods.")] = "",
) -> None:
    """Make one self-contained HTML page of finished runs, from their records alone."""
    if out.is_dir():
        raise DataError(f"{out} is a folder. Name the page itself, such as --out {out / 'report.html'}.")
    files.write_text(out, page.report(folders, title))
    console.print(f"  {out} ({out.stat().st_size / 1000:.0f} kB)", soft_wrap=True)
