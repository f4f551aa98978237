"""The commands that print what a finished run says: its table, and its privacy statement."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hushprompt.cli.console import console
from hushprompt.privacy import statements
from hushprompt.reporting.result_table import result_table
from hushprompt.runs import records
from hushprompt.runs.records import ArmSummary


def show(folder: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")]) -> None:
    """Print the result table of a finished run again."""
    summary = records.read_record(folder / "summary.json")
    show_results([records.from_json(ArmSummary, arm) for arm in summary["arms"]], folder)


def privacy(folder: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")]) -> None:
    """Print who sees what of a run, at which epsilon."""
    show_statement(records.read_record(folder / "privacy.json"))


def show_results(arms: list[ArmSummary], folder: Path) -> None:
    """Print the table, what its epsilon means, and where everything lies."""
    table = result_table(arms, records.read_record(folder / "privacy.json"))
    for grid in table.grids:
        console.print(grid)
    for line in table.notes:
        console.print(line, markup=False, soft_wrap=True)
    for path in ("summary.json", "privacy.json", "records.jsonl", "prompts/", "config.toml"):
        console.print(f"  {folder / path}", soft_wrap=True)


def show_statement(privacy_json: dict[str, Any]) -> None:
    """Print a privacy record in sentences."""
    for arm in privacy_json["arms"]:
        for line in statements.statement_lines(arm):
            console.print(line, soft_wrap=True)
        for line in [*statements.cross_check_lines(arm), *statements.account_lines(arm)]:
            console.print(line, soft_wrap=True)
    for key in ("other_client", "server", "not_private", "evaluation_images", "noise_source", "several_arms"):
        if key in privacy_json:  # one is there only where accuracies are noisy
            console.print(f"{key.replace('_', ' ')}: {privacy_json[key]}", soft_wrap=True)
