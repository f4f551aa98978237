"""The command line: the one place that prints, draws progress and picks folders.

Only typer, and what has no dependencies, is imported here; a command's own module is imported when it is called.
"""

from __future__ import annotations

import codecs
import contextlib
import logging
import os
import sys
import traceback
from typing import Annotated

import typer
from rich.console import Console

from hushprompt.cli.commands import EXAMPLES, HELP
from hushprompt.cli.lazy import LazyGroup, epilog
from hushprompt.errors import FULL, sentence_of
from hushprompt.process import tune

logger = logging.getLogger("hushprompt")
app = typer.Typer(
    cls=LazyGroup, help=HELP, epilog=epilog(EXAMPLES), no_args_is_help=True, pretty_exceptions_enable=False
)
RUNS = (["run"], ["sweep"])
"""Commands that take up again what a full disk ended."""


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
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error comes from, for a report to the developers.")
    ] = False,
) -> None:
    """Take the options that come before a command."""
    logger.setLevel(logging.DEBUG if debug else logging.NOTSET)


def main() -> None:
    """Run the command line; whatever goes wrong becomes one plain sentence and exit status 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    tune()
    print_in_any_encoding()
    try:
        try:
            app()
        finally:
            flush_output()  # a full disk shows here, not after the exit status is set
    except BrokenPipeError:  # whoever read along has seen enough
        drop_output()
        sys.exit(1)
    except Exception as error:  # one place for all: errors of the system and of libraries too
        if logger.isEnabledFor(logging.DEBUG):
            traceback.print_exc()
        is_run = sys.argv[1:2] in RUNS and getattr(error, "errno", None) in FULL
        said = f"hushprompt: {sentence_of(error)}" + (" A run that had begun goes on with --resume." if is_run else "")
        Console(stderr=True, highlight=False).print(said, markup=False, soft_wrap=True)
        sys.exit(2)


LETTERS = {"±": "+-", "ε": "epsilon", "δ": "delta", "·": "-", "≥": ">=", "≤": "<=", "…": "..."}
"""What stands for a letter that the output's encoding does not have."""


def print_in_any_encoding() -> None:
    """Let the output replace letters that its encoding does not have: no result is lost for a sign."""
    codecs.register_error("hushprompt", _replaced)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="hushprompt")


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """Replace what cannot be encoded by words, or else by its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(
        LETTERS.get(each) or each.encode("ascii", "backslashreplace").decode() for each in letters
    ), error.end


def flush_output() -> None:
    """Write what is still on its way to the output.

    Raises:
        OSError: it cannot be written; the interpreter will not try again.
    """
    try:
        sys.stdout.flush()
    except OSError:
        drop_output()
        raise


def drop_output() -> None:
    """Write nothing more: the interpreter would fail again when it ends."""
    with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:  # suppressed: an output that is no file
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
