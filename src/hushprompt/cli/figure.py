"""The command that draws a figure of finished runs for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hushprompt import checks
from hushprompt.cli.console import console
from hushprompt.reporting import figures
from hushprompt.runs import reader


def figure(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, folders of them, packed sweeps.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .pdf, .svg or .png.")],
    kind: Annotated[str, typer.Option(help=f"What to draw: {', '.join(figures.KINDS)}.")] = "curves",
) -> None:
    """Draw a figure of finished runs as a file for a paper, from their records alone."""
    checks.one_of(figures.KINDS, kind=kind)
    figures.figure(reader.find(runs).runs, kind, out)
    console.print(f"  {out} ({out.stat().st_size / 1000:.0f} kB)", soft_wrap=True)
