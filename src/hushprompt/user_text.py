"""Text and names as users write them: files from any editor, and names that look the same.

Names (classes, clients, domains) are compared in Unicode's composed form, NFC: file systems and editors write the same
"é" as one character or as two. Paths are left as they are.
"""

from __future__ import annotations

import codecs
import re
import tomllib
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hushprompt.errors import DataError

MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
"""Byte order marks that editors put in front of a text, and the encoding that they stand for."""
TOML_HINTS = (
    (
        lambda line: "\\" in line,
        "A backslash between double quotes starts an escape: write 'C:\\data' in single quotes, or C:/data.",
    ),
    (
        lambda line: any(unicodedata.category(letter) == "Cc" for letter in line.replace("\t", "")),
        "It has a control character, as old editors leave at the end of a file. Delete it.",
    ),
    (
        lambda line: re.search("[\u2010-\u2015\u2018-\u201e\u2212]", line) is not None,
        "It has typographic quotes or dashes. Write straight ones.",
    ),
    (
        lambda line: any(unicodedata.category(letter) in ("Cf", "Zs") for letter in line.replace(" ", "")),
        "It has a space or sign that cannot be told from others, as web pages put in. Type it anew.",
    ),
    (lambda line: re.match(r"\s*[\w.]+\s*:", line) is not None, "TOML has = between a key and its value, not a colon."),
    (
        lambda line: re.search(r"=\s*[+-]?\d+,\d+\s*([,}\]]|$)", line) is not None,
        "A number of TOML has a decimal point, not a comma.",
    ),
    (lambda line: line.lstrip().startswith(("//", ";")), "A comment of TOML starts with #."),
    (lambda line: line.rstrip().endswith(";"), "A line of TOML does not end with a semicolon."),
)
"""What often is wrong with a line that is no TOML."""


def read_text(path: Path) -> str:
    """Return the text of a file, UTF-8 or UTF-16 with its mark: without the mark, with line feeds at the ends of lines.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has another encoding; the message says where.
    """
    content = path.read_bytes()
    mark = next((mark for mark in MARKS if content.startswith(mark)), b"")
    if not mark and b"\0" in content:
        raise ValueError("it is not UTF-8 text but binary, or UTF-16 without its mark; save the file as UTF-8")
    try:
        text = content[len(mark) :].decode(MARKS.get(mark, "utf-8"))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"line {line} is not UTF-8 text: the byte 0x{content[len(mark) + error.start]:02x} is of another encoding, "
            "such as Windows-1252; save the file as UTF-8"
        ) from error
    return text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path, option: str) -> tuple[str, ...]:
    """Return the lines of the text file that an option names: those not empty, in NFC, without spaces around them.

    Lines end with line feeds alone: a name may have any other character.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{option} {path} cannot be read ({error}). Check {option}.") from error
    return tuple(nfc(line.strip()) for line in text.split("\n") if line.strip())


def read_toml(path: Path) -> dict[str, Any]:
    """Return the values of a TOML file; raises as `read_text`, and ValueError with the cause for what is none."""
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{error}.{toml_hint(text)}") from error
    except RecursionError as error:
        raise ValueError("its brackets are nested too deeply") from error


def toml_hint(text: str) -> str:
    """Return the likely cause why a text is no TOML, with a space in front; empty where there is none.

    >>> toml_hint("seed = 1;")
    ' A line of TOML does not end with a semicolon.'
    """
    for line in text.split("\n"):
        try:
            tomllib.loads(line)
        except tomllib.TOMLDecodeError:
            for is_so, hint in TOML_HINTS:
                if is_so(line):
                    return f" {hint}"
    return ""


def printable(text: str) -> str:
    r"""Return one line that a terminal shows and does not obey: control characters are escaped.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return "".join(
        letter.encode("unicode_escape").decode() if unicodedata.category(letter) == "Cc" else letter for letter in text
    )


def nfc(name: str) -> str:
    """Return a name in the form in which names are compared.

    >>> nfc("cafe" + chr(0x301)) == "caf" + chr(0xE9)
    True
    """
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    """Return a name without case, spaces, underscores and signs that are not seen, in Unicode's compatibility form.

    A whole number is its value: 01, +1 and the digits of other scripts are 1.
    """
    letters = unicodedata.normalize("NFKC", name).casefold().replace("_", " ").split()
    seen = "".join(letter for letter in "".join(letters) if unicodedata.category(letter) != "Cf")
    return str(int(seen)) if re.fullmatch(r"[+-]?\d{1,99}", seen) else seen


def alike(names: Iterable[str]) -> list[list[str]]:
    """Return groups of names that differ by case, spaces, underscores or the writing of a number alone, each sorted.

    >>> alike(["red fox", "Red_Fox", "cat"])
    [['Red_Fox', 'red fox']]
    """
    groups: dict[str, set[str]] = {}
    for name in names:
        groups.setdefault(_folded(name), set()).add(name)
    return [sorted(group) for _, group in sorted(groups.items()) if len(group) > 1]
