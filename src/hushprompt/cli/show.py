"""The commands that print what a finished run says: its table, and its privacy statement."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hushprompt.cli.console import console
from hushprompt.privacy import statements

if TYPE_CHECKING:
    from hushprompt.api.run import Run


def show(folder: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")]) -> None:
    """Print the result table of a finished run again."""
    from hushprompt.api.run import load

    show_results(load(folder))


def privacy(folder: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")]) -> None:
    """Print who sees what of a run, at which epsilon."""
    from hushprompt.api.run import load

    show_statement(load(folder).privacy)


def show_results(run: Run) -> None:
    """Print the table, what its epsilon means, and where everything lies."""
    table = run.table()
    for grid in table.grids:
        console.print(grid)
    for line in table.notes:
        console.print(line, markup=False, soft_wrap=True)
    for path in ("summary.json", "privacy.json", "records.jsonl", "prompts/", "config.toml"):
        console.print(f"  {run.folder / path}", soft_wrap=True)


def show_statement(privacy_json: Mapping[str, Any]) -> None:
    """Print a privacy record in sentences."""
    for arm in privacy_json["arms"]:
        for line in statements.statement_lines(arm):
            console.print(line, soft_wrap=True)
        for line in [*statements.cross_check_lines(arm), *statements.account_lines(arm)]:
            console.print(line, soft_wrap=True)
    for key in ("other_client", "server", "not_private", "evaluation_images", "noise_source", "several_arms"):
        if key in privacy_json:  # one is there only where accuracies are noisy
            console.print(f"{key.replace('_', ' ')}: {privacy_json[key]}", soft_wrap=True)
