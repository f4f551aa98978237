"""The command that draws a figure of finished runs for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import hushprompt as hp
from hushprompt.cli.console import console

KINDS = "curves, budget, clients, confusion, roc, tradeoff, epsilon, partition"


def figure(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, folders of them, packed sweeps.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .pdf, .svg or .png.")],
    kind: Annotated[str, typer.Option(help=f"What to draw: {KINDS}.")] = "curves",
) -> None:
    """Draw a figure of finished runs as a file for a paper, from their records alone."""
    hp.figure(runs, out, kind=kind)
    console.print(f"  {out} ({out.stat().st_size / 1000:.0f} kB)", soft_wrap=True)
