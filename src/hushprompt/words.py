"""Counts and lists in sentences."""

from __future__ import annotations

from collections.abc import Sequence


def counted(number: int | str, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one.

    >>> counted(1, "release"), counted(2, "release"), counted(3, "class"), counted(0, "copy")
    ('1 release', '2 releases', '3 classes', '0 copies')
    """
    if str(number) == "1":
        return f"1 {noun}"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{number} {noun[:-1]}ies"
    return f"{number} {noun}{'es' if noun.endswith(('s', 'x', 'ch', 'sh')) else 's'}"


def first_of(names: Sequence[object], most: int) -> str:
    """Name the first few of many.

    >>> first_of(["a", "b", "c"], 2)
    'a, b, ...'
    """
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")
