"""A JSONL file with one question a line: image or sound, question, true answers, and, if you like, who holds it.

    {"image": "scans/07.png", "question": "Which side?", "answers": ["left"], "client": "north", "group": "patient 7"}

Without questions, each line is a caption: all are asked the question of the backbone's section.
"""

from __future__ import annotations

import dataclasses
import hashlib
import posixpath
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from hushprompt.data.base import Dataset, Split
from hushprompt.data.decoding import media_of
from hushprompt.data.listing import Decoded, Files
from hushprompt.data.readers.base import Found, OwnData, required, text_of
from hushprompt.data.readers.table import as_path, json_rows
from hushprompt.errors import DataError
from hushprompt.registry import DATASETS
from hushprompt.user_text import read_text

ALL = "all"
"""The one category where nobody names a column of them."""
HELD = ("client", "split", "domain", "group")
"""Entries that say whose a line is."""


class QuestionLine(NamedTuple):
    """A question as a line has it."""

    path: str
    question: str
    answers: tuple[str, ...]


@DATASETS.register("questions")
@dataclass(frozen=True, kw_only=True)
class Questions(OwnData):
    """Questions on your own images or sounds with their answers, or captions, listed in a JSONL file."""

    needs_classes: ClassVar[bool] = False

    file: str = ""
    """The list: .jsonl with one object a line, which has an image or sound and answers, and may have question, client,
    split, domain and group."""
    root: str = ""
    """Folder that relative paths start from; empty: the list's own."""
    path_field: str = "image"
    """Entry of the path of an image or sound."""
    question_field: str = "question"
    """Entry of the question; a list in which no line has one is of captions: all are asked backbone.question."""
    answers_field: str = "answers"
    """Entry of the true answers, a list or one text. Trained is on the most frequent one, of several the first."""
    category_field: str = ""
    """Entry of a category, such as the kind of question, that partitions by class then deal out; empty: none."""

    def load(self) -> Dataset:
        """Read the list; no image or sound is decoded yet."""
        required("questions", file=self.file)
        path = Path(self.file).expanduser()
        root = Path(self.root).expanduser() if self.root else path.parent
        rows = [(row, f"{path}, line {line}") for line, row in _rows(path)]
        asked = [self._asked(row, root, where) for row, where in rows]
        _check_questions(asked, path)
        names = [one.path for one in asked]
        found = [self._found(row, name, where) for (row, where), name in zip(rows, numbered(names), strict=True)]
        media = media_of(names, self.sampling_rate, str(path))
        dataset = self.dataset("questions", path, found, Files(root, names), media)
        return dataclasses.replace(
            dataset, splits={name: _with_texts(split, asked) for name, split in dataset.splits.items()}
        )

    def _asked(self, row: Mapping[str, Any], root: Path, where: str) -> QuestionLine:
        """Read path, question and answers of a line."""
        path, question = row.get(self.path_field), row.get(self.question_field)
        if not isinstance(path, str) or not path.strip() or "\0" in path:
            raise DataError(
                f"{where}: {self.path_field!r} must be the path of an image or sound, got {path!r}. Fill it in, or "
                "name another entry with data.path_field."
            )
        if question is not None and (not isinstance(question, str) or not question.strip()):
            raise DataError(f"{where}: {self.question_field!r} must be a text, got {question!r}.")
        found = row.get(self.answers_field)
        answers = [found] if isinstance(found, str) else found
        if (
            not isinstance(answers, list)
            or not answers
            or not all(isinstance(one, str) and one.strip() for one in answers)
        ):
            raise DataError(
                f"{where}: {self.answers_field!r} must be a list of texts with at least one, got {found!r}. Fill it "
                "in, or name another entry with data.answers_field."
            )
        return QuestionLine(
            posixpath.normpath(as_path(path.strip(), root)),
            (question or "").strip(),
            tuple(one.strip() for one in answers),
        )

    def _found(self, row: Mapping[str, Any], name: str, where: str) -> Found:
        """Read who holds a line, and its category."""
        category = ALL
        if self.category_field:
            category = text_of(row.get(self.category_field), where, self.category_field, is_class=True)
            if not category:
                raise DataError(f"{where}: there is no {self.category_field!r}, which data.category_field asks for.")
        held = {name: text_of(row.get(name), where, name) or None for name in HELD}
        return Found(name, category, **held)


def numbered(names: list[str]) -> list[str]:
    """Return names of which each occurs once: the second question on an image gets a 2 behind it, and so on.

    >>> numbered(["a.png", "b.png", "a.png"])
    ['a.png', 'b.png', 'a.png (2)']
    """
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return unique


def _rows(path: Path) -> list[tuple[int, Mapping[str, Any]]]:
    """Read the lines.

    Raises:
        DataError: the file cannot be read, or a line is no object.
    """
    if path.suffix.lower() != ".jsonl":
        raise DataError(f"The list {path} must end in .jsonl.")
    try:
        return list(json_rows(read_text(path), path))
    except (OSError, ValueError) as error:
        raise DataError(f"The list {path} cannot be read ({error}). Check data.file.") from error


def _check_questions(asked: list[QuestionLine], path: Path) -> None:
    """Raise DataError where some lines have a question and others none."""
    has_question = [bool(one.question) for one in asked]
    if any(has_question) and not all(has_question):
        without = asked[has_question.index(False)].path
        raise DataError(f"{path}: {without} has no question, others do. Give every line one, or none (captions).")


def _with_texts(split: Split, asked: list[QuestionLine]) -> Split:
    """Return a split with the questions and answers of its examples, which share images of one path.

    Its fingerprint is of the images alone, in their order: what is asked about them changes no feature.
    """
    assert isinstance(split.read, Decoded), "built from a list of files"
    source, rows = split.read.source, split.read.rows.tolist()
    own = [asked[row] for row in rows]
    digest, numbers = hashlib.sha256(repr(split.read.media).encode()), dict[str, int]()
    for row, one in zip(rows, own, strict=True):
        if one.path not in numbers:
            numbers[one.path] = len(numbers)
            digest.update(f"{one.path}\n{source.stamp(row)}\n".encode(errors="surrogateescape"))
    return dataclasses.replace(
        split,
        questions=tuple(one.question for one in own),
        answers=tuple(one.answers for one in own),
        images=np.array([numbers[one.path] for one in own], dtype=np.int64),
        fingerprint=digest.hexdigest(),
    )
