"""The command line: the one place that prints, draws progress and picks folders.

Only typer, and what has no dependencies, is imported here; a command's own module is imported when it is called.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer
from rich.console import Console

from hushprompt.cli.commands import EXAMPLES, HELP
from hushprompt.cli.lazy import LazyGroup, epilog
from hushprompt.errors import HushpromptError
from hushprompt.process import tune

app = typer.Typer(
    cls=LazyGroup, help=HELP, epilog=epilog(EXAMPLES), no_args_is_help=True, pretty_exceptions_enable=False
)


def show_version(is_wanted: bool) -> bool:
    """Print the version and exit, if that is wanted."""
    if is_wanted:
        import importlib.metadata

        typer.echo(f"hushprompt {importlib.metadata.version('hushprompt')}")
        raise typer.Exit
    return is_wanted


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take the options that come before a command."""


def main() -> None:
    """Run the command line; our own errors become one plain sentence and exit status 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    tune()
    try:
        app()
    except HushpromptError as error:
        Console(stderr=True, highlight=False).print(f"hushprompt: {error}", markup=False, soft_wrap=True)
        sys.exit(2)
