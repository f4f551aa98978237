"""What is worth telling of a data set: one line each, with a count and the first few paths."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SHOWN = 3
"""Paths that a line names."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a user should know of a data set."""

    kind: str
    """A word to tell findings apart, such as "copies_in_training"."""
    message: str
    """What was found, and what it means, as a sentence without its full stop."""
    count: int
    """How many files, classes or groups."""
    paths: tuple[str, ...] = ()
    """The first few of them, sorted."""
    is_refused: bool = False
    """Whether a run refuses data with it."""

    def line(self) -> str:
        """Return the finding as one line."""
        shown = ", ".join(self.paths) + (", ..." if self.count > len(self.paths) else "")
        return f"{self.message} ({self.count}{': ' + shown if self.paths else ''})"


def finding(kind: str, message: str, names: Iterable[str], *, is_refused: bool = False) -> list[Finding]:
    """Return a finding about some files, classes or groups; none where there are none.

    >>> finding("stray", "Left out", ["b", "a"])[0].line()
    'Left out (2: a, b)'
    """
    names = sorted(names)
    if not names:
        return []
    return [Finding(kind=kind, message=message, count=len(names), paths=tuple(names[:SHOWN]), is_refused=is_refused)]
