"""Output in any encoding, which cannot fail twice."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys

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
