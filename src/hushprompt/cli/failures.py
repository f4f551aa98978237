"""What a user is told when something goes wrong, and output that cannot fail twice."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import sys

from hushprompt.errors import HushpromptError

REMEDIES = {
    errno.ENOSPC: "The disk is full: free some space, or write elsewhere. A run that had begun goes on with --resume.",
    errno.EDQUOT: "Your disk quota is used up: free some space, or write elsewhere. A run that had begun goes on with "
    "--resume.",
    errno.EACCES: "You may not read or write there: choose another path, or change its permissions.",
    errno.EPERM: "You may not read or write there: choose another path, or change its permissions.",
    errno.EROFS: "Nothing can be written there: choose another path.",
    errno.ENOENT: "Check the path.",
    errno.EEXIST: "A file stands where a folder is wanted: choose another path.",
    errno.ENOTDIR: "A file stands where a folder is wanted: choose another path.",
    errno.EISDIR: "A folder stands where a file is wanted: choose another path.",
    errno.ENAMETOOLONG: "Choose a shorter path.",
    errno.EMFILE: "Too many files are open: raise the limit (ulimit -n).",
    errno.EIO: "The disk or its connection failed: look at it, and try again.",
}
"""What to do about an error of the system."""
DEBUG = "hushprompt --debug COMMAND ... shows where it comes from."
LETTERS = {"±": "+-", "ε": "epsilon", "δ": "delta", "·": "-", "≥": ">=", "≤": "<=", "…": "..."}
"""What stands for a letter that the output's encoding does not have."""
LONGEST = 300
"""Characters of a library's message that are shown."""


def sentence_of(error: Exception) -> str:
    """Say what went wrong, and what to do about it.

    >>> sentence_of(FileNotFoundError(2, "No such file or directory", "x.toml"))
    'No such file or directory: x.toml. Check the path.'
    """
    if isinstance(error, HushpromptError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        where = "".join(f": {os.fsdecode(name)}" for name in (error.filename, error.filename2) if name is not None)
        return f"{error.strerror}{where}. {REMEDIES.get(error.errno, DEBUG)}"
    message = " ".join(str(error).split())
    message = message if len(message) <= LONGEST else f"{message[:LONGEST]}..."
    if isinstance(error, UnicodeError):
        return f"A text cannot be read or written ({message}). Save it as UTF-8, or set PYTHONUTF8=1. {DEBUG}"
    return f"Something failed that is not foreseen: {type(error).__name__}: {message.rstrip('.')}. {DEBUG}"


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
