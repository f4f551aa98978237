"""The command that trains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import hushprompt as hp
from hushprompt.cli.console import INTERRUPTED, ConfigFile, console
from hushprompt.cli.show import show_results, show_statement
from hushprompt.errors import ConfigError
from hushprompt.process import importing


def run(
    config: ConfigFile = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override, such as privacy.epsilon=4.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; none: a new one under runs/.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on in this run folder, with its own config.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print config and privacy statement only.")] = False,
) -> None:
    """Train, evaluate and account; write a run folder and print the table."""
    with importing():
        from hushprompt.api import training
        from hushprompt.api.progress import TrainingBars
        from hushprompt.config import parse as configs

    settings = set_ or []
    if resume is not None and (config is not None or out is not None):
        raise ConfigError("--resume takes the run folder's own config: give no CONFIG or --out.")
    if resume is None:
        resolved = configs.load(configs.locate(config), settings)
        folder = out or training.new_folder(resolved)
    else:
        training.check_overrides(settings)
        folder, resolved = resume, training.config_of(resume, settings)
    if dry_run:
        planned = hp.plan(resolved)
        console.print(planned.config.to_toml(), markup=False, soft_wrap=True)
        show_statement(planned.privacy, planned.privacy)
        return
    try:
        with TrainingBars(console) as bars:
            if resume is None:
                done = hp.run(resolved, out=folder, progress=bars)
            else:
                done = hp.resume(folder, progress=bars, overrides=settings)
    except KeyboardInterrupt:
        console.print(f"Stopped. Everything up to the last round is in {folder}; go on with:")
        console.print(f"  hushprompt run --resume {folder}", soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    show_results(done)
