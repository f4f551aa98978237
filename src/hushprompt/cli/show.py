"""The commands that print what a finished run says: its table, and its privacy statement."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import hushprompt as hp
from hushprompt.cli.console import console, sentence
from hushprompt.privacy import statements

if TYPE_CHECKING:
    from hushprompt.api.run import Run


def show(folder: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")]) -> None:
    """Print the result table of a finished run again."""
    show_results(hp.load(folder))


def privacy(folder: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")]) -> None:
    """Print who sees what of a run, at which epsilon."""
    show_statement(hp.load(folder).privacy)


def show_results(run: Run) -> None:
    """Print the table, what its epsilon means, and where everything lies."""
    table = run.table()
    for grid in table.grids:
        console.print(grid)
        console.print()
    for line in table.notes:
        sentence(line)
    console.print()
    for path in ("summary.json", "privacy.json", "records.jsonl", "prompts/", "config.toml"):
        console.print(f"  {run.folder / path}", soft_wrap=True)


def show_statement(privacy_json: Mapping[str, Any]) -> None:
    """Print a privacy record in sentences."""
    for arm in privacy_json["arms"]:
        for line in statements.statement_lines(arm):
            sentence(line)
        for line in [*statements.cross_check_lines(arm), *statements.account_lines(arm)]:
            sentence(line)
    for key in ("other_client", "server", "not_private", "evaluation_images", "noise_source", "several_arms"):
        if key in privacy_json:  # one is there only where accuracies are noisy
            sentence(f"{key.replace('_', ' ')}: {privacy_json[key]}")
