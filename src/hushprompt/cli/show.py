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
    from hushprompt.audits.verify import Verification


def show(folder: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")]) -> None:
    """Print the result table of a finished run again."""
    show_results(hp.load(folder))


def privacy(folder: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")]) -> None:
    """Print who sees what of a run, at which epsilon."""
    found = hp.verify(folder)
    show_statement(hp.load(folder).privacy, found.privacy)
    show_verification(found)


def verify(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a copy of one.")],
    digest: Annotated[str, typer.Option(help="As it was printed when the run ended, and kept elsewhere.")] = "",
) -> None:
    """Compute a run's noise and epsilon again, and compare everything that it published."""
    show_verification(hp.verify(folder, digest=digest))


def show_verification(found: Verification) -> None:
    """Print what was checked; differences end the command with exit status 1."""
    for line in found.lines():
        sentence(line)
    if not found.is_consistent:
        raise typer.Exit(1)


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


def show_statement(privacy_json: Mapping[str, Any], computed: Mapping[str, Any] | None) -> None:
    """Print a privacy record in sentences.

    Args:
        privacy_json: what is claimed.
        computed: the same, computed now: what is said of epsilons, accountants and clients comes from here; None: all
            that is said was only read.
    """
    for arm in (computed or privacy_json)["arms"]:
        for line in statements.statement_lines(arm):
            sentence(line)
        for line in [*statements.cross_check_lines(arm), *statements.account_lines(arm)] if computed else []:
            sentence(line)
    for key in ("other_client", "server", "not_private", "evaluation_images", "noise_source", "several_arms"):
        if key in privacy_json:  # one is there only where accuracies are noisy
            sentence(f"{key.replace('_', ' ')}: {privacy_json[key]}")
