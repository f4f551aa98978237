"""What a page is built of, as values; page.html.j2 writes each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from markupsafe import Markup

from hushprompt.reporting.drawing import Drawing, embedded
from hushprompt.reporting.styles import Style


@dataclass(frozen=True)
class Block:
    """A part of a section."""

    kind: ClassVar[str]
    """Name of the macro that writes it."""


@dataclass(frozen=True)
class Words(Block):
    """A paragraph."""

    kind = "words"
    text: str
    look: str = "note"
    """Its class: note, missing (why something is not there), warning, or none."""


@dataclass(frozen=True)
class PageTable(Block):
    """A table whose first column names its rows."""

    kind = "table"
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    """Cells, as many a row as there are titles; what is not markup is escaped."""
    on_phone: Literal["scroll", "cards", "lines"] = "scroll"
    """On a narrow screen, scroll, or give every row a card: with its short cells in columns, or one below the other."""
    has_samples: bool = False
    """Show each group's mark beside its name."""


@dataclass(frozen=True)
class Fold(Block):
    """What a reader opens on demand."""

    kind = "fold"
    summary: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Figures(Block):
    """Panels side by side, what they show, and the numbers behind them."""

    kind = "figures"
    slug: str
    panels: Sequence[Markup]
    caption: str
    legend: Sequence[tuple[str, Style]]
    numbers: Sequence[Block]

    @property
    def columns(self) -> int:
        """Panels beside each other where there is room."""
        return 2 if len(self.panels) % 2 == 0 else min(len(self.panels), 3)


@dataclass(frozen=True)
class Guarantees(Block):
    """The guarantee of one arm for every audience."""

    kind = "guarantees"
    name: str
    items: Sequence[tuple[str, str, str]]
    """Audience, statement, and the same in plain words."""
    note: str


@dataclass(frozen=True)
class Definitions(Block):
    """Words and what they mean."""

    kind = "definitions"
    heading: str
    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Code(Block):
    """Text of a file."""

    kind = "code"
    text: str


@dataclass(frozen=True)
class PageSection:
    """A section with its heading."""

    slug: str
    title: str
    blocks: Sequence[Block]


def figures(drawing: Drawing, *numbers: Block) -> Figures:
    """Return a drawing for the page."""
    panels = [embedded(panel) for panel in drawing.panels]
    return Figures(drawing.slug, panels, f"{drawing.caption} {drawing.note}".rstrip(), drawing.legend, numbers)


def missing(text: str) -> Words:
    """Say why something is not there."""
    return Words(text, "missing")
