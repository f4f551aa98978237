"""The exceptions a caller may want to catch; everything else is a plain ValueError or a bug."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

REMEDIES = {
    errno.ENOSPC: "The disk is full: free some space, or write elsewhere.",
    errno.EDQUOT: "Your disk quota is used up: free some space, or write elsewhere.",
    errno.EACCES: "You may not read or write there: choose another path, or change its permissions.",
    errno.EPERM: "You may not read or write there: choose another path, or change its permissions.",
    errno.EROFS: "Nothing can be written there: choose another path.",
    errno.ENOENT: "Check the path.",
    errno.EEXIST: "A file stands where a folder is wanted: choose another path.",
    errno.ENOTDIR: "A file stands where a folder is wanted: choose another path.",
    errno.EISDIR: "A folder stands where a file is wanted: name a file in it, or choose another path.",
    errno.ENAMETOOLONG: "Choose a shorter path.",
    errno.EMFILE: "Too many files are open: raise the limit (ulimit -n).",
    errno.EIO: "The disk or its connection failed: look at it, and try again.",
}
"""What to do about an error of the system."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors of a full disk."""
DEBUG = "hushprompt --debug COMMAND ... shows where it comes from."
LONGEST = 300
"""Characters of a library's message that are shown."""


class HushpromptError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(HushpromptError, ValueError):
    """A setting is wrong or impossible; the message says what is allowed and what to do."""


class UnfitError(ConfigError):
    """A method cannot run on this backbone or beside these settings: a reference is left out, a run is refused."""


class PrivacyError(ConfigError):
    """A configuration lies outside the privacy theorem, so no epsilon could be claimed for it."""


class DataError(HushpromptError):
    """A file or folder of data, weights or results is missing, damaged or not what it should be."""


class ResumeError(HushpromptError):
    """A run folder cannot be resumed, or a new run would overwrite one."""


class ProtocolError(HushpromptError):
    """A message of a federation is malformed, or outside what was agreed; it is refused and has no effect."""


class LinkError(HushpromptError):
    """The server of a federation cannot be reached, or does not do what its operator asks."""


class FileError(DataError, OSError):
    """The system refuses to read or write a file or folder; an OSError, too."""

    def __init__(self, text: str, number: int | None = None) -> None:
        """Take the sentence, and the number of the system's error."""
        super().__init__(text)
        self.errno = number


def sentence_of(error: Exception) -> str:
    """Say what went wrong, and what to do about it.

    >>> sentence_of(FileNotFoundError(2, "No such file or directory", "x.toml"))
    'No such file or directory: x.toml. Check the path.'
    """
    if isinstance(error, HushpromptError):
        return str(error)
    if is_nul(error):
        return "A path has a character NUL in it. Choose another path."
    if isinstance(error, OSError) and error.errno is not None:
        where = "".join(f": {os.fsdecode(name)}" for name in (error.filename, error.filename2) if name is not None)
        return f"{error.strerror}{where}. {REMEDIES.get(error.errno, DEBUG)}"
    message = " ".join(str(error).split())
    message = message if len(message) <= LONGEST else f"{message[:LONGEST]}..."
    if isinstance(error, UnicodeError):
        return f"A text cannot be read or written ({message}). Save it as UTF-8, or set PYTHONUTF8=1. {DEBUG}"
    return f"Something failed that is not foreseen: {type(error).__name__}: {message.rstrip('.')}. {DEBUG}"


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says."""
    return (str(error) or repr(error)).strip().splitlines()[0]


def is_nul(error: Exception) -> bool:
    """Whether an error is what Python says of a path with a character NUL in it."""
    return isinstance(error, ValueError) and "embedded null" in str(error)


@contextlib.contextmanager
def files_told() -> Iterator[None]:
    """Turn errors of the system, such as of an output path, into the sentence that the command line prints.

    Raises:
        FileError: for each of them, but for an output that nobody reads any more.
    """
    try:
        yield
    except (HushpromptError, BrokenPipeError):
        raise
    except (OSError, ValueError) as error:
        if not isinstance(error, OSError) and not is_nul(error):
            raise
        raise FileError(sentence_of(error), getattr(error, "errno", None)) from error
