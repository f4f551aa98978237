"""One line of a result, and results as JSON, as a table on the screen and as Markdown."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

Figure = Literal["speedup", "ratio", "share", "amount"]
"""What a target is about: reference over ours (at least), ours over reference (at most, as a factor or in percent), or
ours alone (at most)."""
SIGNS = {"speedup": "≥", "ratio": "≤", "share": "≤", "amount": "≤"}


@dataclass(frozen=True)
class Arithmetic:
    """Floating-point operations of matrix products and convolutions, counted while the work ran."""

    ours_gflop: float
    reference_gflop: float
    peak: float
    """GFLOP/s of large float32 matrix products, one thread, measured in the same process."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Ours, what it is compared with, and what was wanted."""

    name: str
    figure: Figure
    ours: float | None
    """None where it could not be measured; `note` then says why."""
    reference: float | None = None
    unit: str = "s"
    """Of both. Seconds are own CPU time unless the name says wall."""
    target: float | None = None
    ours_mb: float | None = None
    """Peak resident memory, of a process that does nothing else."""
    reference_mb: float | None = None
    arithmetic: Arithmetic | None = None
    note: str = ""

    @property
    def value(self) -> float | None:
        """The figure that the target is about."""
        if self.figure == "amount" or self.ours is None:
            return self.ours
        assert self.reference is not None
        return self.reference / self.ours if self.figure == "speedup" else self.ours / self.reference

    @property
    def shortfall(self) -> float | None:
        """Share of the target that is missing; 0 where it is met, None where there is none or nothing was measured."""
        if self.target is None or self.value is None:
            return None
        missing = 1 - self.value / self.target if self.figure == "speedup" else self.value / self.target - 1
        return max(0.0, missing)

    def to_plain(self) -> dict[str, Any]:
        """Return what the JSON file says: the fields, and what follows from them."""
        follows: dict[str, Any] = {"value": self.value, "shortfall": self.shortfall}
        if self.arithmetic is not None and self.ours is not None and self.reference is not None:
            count = self.arithmetic
            follows["ours_seconds_at_peak"] = count.ours_gflop / count.peak
            follows["ours_share_of_peak"] = count.ours_gflop / count.peak / self.ours
            follows["reference_share_of_peak"] = count.reference_gflop / count.peak / self.reference
        return {**dataclasses.asdict(self), **follows}

    def cells(self) -> tuple[str, ...]:
        """Return the cells of a table, see `HEADERS`."""
        return (
            self.name,
            _quantity(self.ours, self.unit),
            _quantity(self.reference, self.unit),
            "" if self.figure == "amount" else self._spell(self.value),
            "" if self.target is None else f"{SIGNS[self.figure]} {self._spell(self.target)}",
            self._verdict(),
            _quantity(self.ours_mb, ""),
            _quantity(self.reference_mb, ""),
        )

    def _spell(self, value: float | None) -> str:
        """Write a value of the kind that the target is about."""
        if value is None:
            return ""
        if self.figure == "amount":
            return _quantity(value, self.unit)
        return f"{value:.1%}" if self.figure == "share" else f"{_digits(value)}x"

    def _verdict(self) -> str:
        """Say whether the target is met, or by how much not."""
        if self.ours is None:
            return "not measured"
        if self.shortfall is None:
            return ""
        return f"missed by {max(self.shortfall, 0.001):.1%}" if self.shortfall else "met"


BEGIN, END = "<!-- benchmarks: {} -->\n", "<!-- end of benchmarks -->\n"
"""What the figures of a page stand between; the name is that of their file."""
HEADERS = ("", "ours", "reference", "ratio", "wanted", "", "peak MB", "reference, peak MB")
LIMIT_HEADERS = ("", "GFLOP", "reference", "ours, s", "at the peak, s", "share of the peak", "reference")


@dataclass(frozen=True)
class Section:
    """The rows of one file."""

    title: str
    rows: tuple[Row, ...]
    seconds: float
    """Wall time that they took."""


@dataclass(frozen=True)
class Result:
    """All sections, by the names of their files, and where they were measured."""

    machine: dict[str, Any]
    is_short: bool
    sections: dict[str, Section]

    def write(self, path: Path) -> None:
        """Write JSON, in a folder that is made."""
        values = {
            "machine": self.machine,
            "is_short": self.is_short,
            "sections": {
                name: {"title": each.title, "seconds": each.seconds, "rows": [row.to_plain() for row in each.rows]}
                for name, each in self.sections.items()
            },
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read what `write` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        sections = {
            name: Section(each["title"], tuple(_row(row) for row in each["rows"]), each["seconds"])
            for name, each in values["sections"].items()
        }
        return cls(values["machine"], values["is_short"], sections)

    def measured_on(self, other: Result) -> Result:
        """Return this result where more sections of another may join it.

        Raises:
            ValueError: the other was measured on another machine, or is of another length.
        """
        if (self.machine, self.is_short) != (other.machine, other.is_short):
            raise ValueError(
                "The file's figures are of another machine, torch or length. Name no section, or no --out."
            )
        return self


def screen(section: Section) -> Table:
    """Draw a section."""
    table = Table(title=f"{section.title} ({section.seconds:.0f} s)", title_justify="left")
    for index, header in enumerate(HEADERS):
        table.add_column(header, justify="left" if index in (0, 5) else "right")
    for row in section.rows:
        table.add_row(*row.cells())
    return table


def markdown(result: Result) -> str:
    """Return the figures of a page: the machine, targets, the arithmetic limit, and what the notes say."""
    machine = result.machine
    sections = result.sections.values()
    rows = [row for section in sections for row in section.rows]
    lines = [
        f"{machine['cpu']} ({machine['cpu_capability']}), {machine['cores']} cores, {machine['memory_gb']:g} GB, "
        f"{machine.get('gpu', 'no GPU')}, torch {machine['torch']}, Python {machine['python']}, {machine['system']}. "
        "All sections took "
        f"{sum(section.seconds for section in sections) / 60:.1f} minutes."
        + (" A short run: fewer passes and rounds." if result.is_short else ""),
        "",
        *_grid(HEADERS, (row for section in sections for row in _titled(section))),
        "",
        *(f"- {row.name}: {row.note}." for row in rows if row.note),
    ]
    limits = [cells for row in rows for cells in _limit(row)]
    if limits:
        lines += [
            "",
            "Arithmetic: floating-point operations of the products, and the time that they would take at the rate that "
            "large float32 products reach on one core of this machine.",
            "",
            *_grid(LIMIT_HEADERS, limits),
        ]
    return "\n".join(lines) + "\n"


def with_figures(page: str, name: str, result: Result) -> str:
    """Return a page with the figures of one file replaced.

    Raises:
        ValueError: the page has no place for them.
    """
    begin = BEGIN.format(name)
    before, found, rest = page.partition(begin)
    if not found:
        raise ValueError(f"The page has no line {begin.strip()!r} for the figures of a file of this name.")
    _, _, after = rest.partition(END)
    return f"{before}{begin}{markdown(result)}{END}{after}"


def _titled(section: Section) -> Iterator[tuple[str, ...]]:
    """Return a section's lines below its title."""
    yield (f"**{section.title}**", *[""] * (len(HEADERS) - 1))
    for row in section.rows:
        yield row.cells()


def _limit(row: Row) -> Iterator[tuple[str, ...]]:
    """Return the line of a row in the table of arithmetic, if it has one."""
    if row.arithmetic is not None:
        plain = row.to_plain()
        yield (
            row.name, f"{row.arithmetic.ours_gflop:.1f}", f"{row.arithmetic.reference_gflop:.0f}", f"{row.ours:.2f}",
            f"{plain['ours_seconds_at_peak']:.2f} at {row.arithmetic.peak:.0f} GFLOP/s",
            f"{plain['ours_share_of_peak']:.0%}", f"{plain['reference_share_of_peak']:.0%}",
        )  # fmt: skip


def _grid(headers: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> list[str]:
    """Return a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (headers, ("---",) * len(headers), *lines)]


def _row(values: dict[str, Any]) -> Row:
    """Make a row of what the JSON file says."""
    names = [field.name for field in dataclasses.fields(Row)]
    count = values["arithmetic"]
    return Row(**{**{name: values[name] for name in names}, "arithmetic": count and Arithmetic(**count)})


def _quantity(value: float | None, unit: str) -> str:
    """Write a number with its unit; nothing for none."""
    if value is None:
        return ""
    return f"{_digits(value)}%" if unit == "%" else f"{_digits(value)} {unit}".rstrip()


def _digits(value: float) -> str:
    """Write three digits, or all in front of the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
