"""The command that asks a trained prompt about images."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

import hushprompt as hp
from hushprompt import files
from hushprompt.cli.console import Tower, Whose
from hushprompt.user_text import printable, read_lines
from hushprompt.words import counted

if TYPE_CHECKING:
    from hushprompt.serving.many import ExamplePrediction

UNREADABLE = 3
"""Exit status where a file could not be read; the others were predicted."""


CLASS_COLUMNS = ("file", "label", "probability", "error", "truth", "zero_shot", "zero_shot_probability")
ANSWER_COLUMNS = ("file", "question", "answer", "is_complete", "error", "truth", "zero_shot")
"""Of a table in CSV."""


class PredictionFormat(StrEnum):
    """How predictions are written."""

    TEXT = "text"
    JSONL = "jsonl"
    CSV = "csv"


class Where(StrEnum):
    """Where a backbone runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Compare(StrEnum):
    """What a prompt is compared with."""

    ZERO_SHOT = "zero_shot"


def predict(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Run folder, prompt file, client's store, or export.")
    ],
    examples: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE]...", help="Files and folders; - is standard input.")
    ] = None,
    client: Whose = None,
    split: Annotated[
        str | None, typer.Option(help="Instead of files: a split of the run's data, such as test.")
    ] = None,
    compare: Annotated[
        Compare | None, typer.Option(help="Ask the hand template too: what did training change?")
    ] = None,
    arm: Annotated[str | None, typer.Option(help="Line of the run's table: its own method, or zero_shot.")] = None,
    classes: Annotated[
        Path | None, typer.Option(help="File of other class names, one a line, for the same context.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes that are named.")] = 5,
    threshold: Annotated[float, typer.Option(help="A label that is less probable is left empty.")] = 0.0,
    question: Annotated[
        str | None, typer.Option(help="Answer this in words instead of by a class; of a generative model's prompt.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens after which such an answer is cut off; none: 32, of a split as in evaluation."
        ),
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", help="Take files in folders of a folder, too.")] = False,
    backbone: Tower = None,
    device: Annotated[Where, typer.Option(help="Where the backbone runs.")] = Where.AUTO,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that are encoded at a time.")] = 50,
    format_: Annotated[
        PredictionFormat, typer.Option("--format", help="How to write predictions.")
    ] = PredictionFormat.TEXT,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A file; none: standard output.")] = None,
) -> None:
    """Say what images or sounds are: the most probable classes of each file, or an answer in words."""
    found = hp.predict(
        source, examples or [], client=client, split=split, compare=None if compare is None else "zero_shot", arm=arm,
        classes=None if classes is None else read_lines(classes, "--classes"), top=top, threshold=threshold,
        question=question, max_tokens=max_tokens, recursive=recursive, batch_size=batch_size, backbone=backbone,
        device=device.value, progress=out is not None,
    )  # fmt: skip
    told = Console(stderr=True, highlight=False)
    told.print(printable(found.prompt.privacy), markup=False, soft_wrap=True)
    counts = Outcome()
    lines = WRITERS[format_](counts.of(found))
    if out is None:
        sys.stdout.writelines(lines)
    else:
        files.write_lines(out, lines)
    told.print(counts.sentence(), markup=False, soft_wrap=True)
    if counts.unreadable:
        raise typer.Exit(UNREADABLE)


@dataclass
class Outcome:
    """What became of the examples."""

    predicted: int = 0
    unreadable: int = 0
    labeled: int = 0
    """Examples of which the data say what is right."""
    right: int = 0

    def of(self, rows: Iterable[ExamplePrediction]) -> Iterator[ExamplePrediction]:
        """Count predictions that pass by."""
        for row in rows:
            self.predicted += row.error is None
            self.unreadable += row.error is not None
            self.labeled += row.is_right is not None
            self.right += row.is_right is True
            yield row

    def sentence(self) -> str:
        """Say it."""
        text = f"{counted(self.predicted, 'prediction')}."
        if self.unreadable:
            text += f" {counted(self.unreadable, 'file')} could not be read: see error."
        if self.labeled:
            text += f" {self.right} of {self.labeled} are right ({100 * self.right / self.labeled:.1f} %)."
        return text


def as_text(rows: Iterable[ExamplePrediction]) -> Iterator[str]:
    """Write a line for people: the file, then classes with their probabilities."""
    for row in rows:
        truth = _truth(row)
        parts = [row.file if truth is None else f"{row.file} ({truth})", *([row.question] if row.question else [])]
        if row.error is not None:
            parts.append(f"error: {row.error}")
        parts += ["-"] if row.label is None and row.answer is None and row.error is None else []
        parts += [f"{name} {probability:.3f}" for name, probability in row.top]
        parts += [row.answer or "-"] if row.answer is not None else []
        parts += ["(cut off)"] if row.is_complete is False else []
        if row.compared is not None:
            parts.append(f"zero-shot: {row.compared.label} {row.compared.probability:.3f}")
        if row.compared_answer is not None:
            parts.append(f"zero-shot: {row.compared_answer or '-'}")
        yield printable("  ".join(parts)) + "\n"


def as_jsonl(rows: Iterable[ExamplePrediction]) -> Iterator[str]:
    """Write a JSON object for each example."""
    for row in rows:
        yield json.dumps(as_values(row), ensure_ascii=False) + "\n"


def as_values(row: ExamplePrediction) -> dict[str, Any]:
    """Return a prediction as plain values: always the first five, the others where they are known."""
    if row.question is not None:
        return _answer_values(row)
    top = [{"label": name, "probability": probability} for name, probability in row.top]
    values: dict[str, Any] = {
        "file": row.file,
        "label": row.label,
        "probability": row.probability,
        "top": top,
        "error": row.error,
    }
    if row.truth is not None:
        values["truth"] = row.truth
    if row.compared is not None:
        values["zero_shot"] = {"label": row.compared.label, "probability": row.compared.probability}
    return values


def _answer_values(row: ExamplePrediction) -> dict[str, Any]:
    """Return an answer in words as plain values."""
    values = {name: getattr(row, name) for name in ("file", "question", "answer", "is_complete", "error")}
    more = {"truth": row.true_answers or row.truth, "zero_shot": row.compared_answer}
    return values | {name: value for name, value in more.items() if value is not None}


def as_csv(rows: Iterable[ExamplePrediction]) -> Iterator[str]:
    """Write a table with a header; unknown values are empty."""
    columns: Sequence[str] = ()
    for row in rows:
        if not columns:
            columns = CLASS_COLUMNS if row.question is None else ANSWER_COLUMNS
            yield _csv_line(columns)
        other = row.compared or (row.compared_answer, None)
        more = {"truth": _truth(row), "zero_shot": other[0], "zero_shot_probability": other[1]}
        values = {**dataclasses.asdict(row), **more}
        yield _csv_line([values[name] for name in columns])


def _truth(row: ExamplePrediction) -> str | None:
    """Return what the data say is right, in one text."""
    return row.truth if row.true_answers is None else " | ".join(row.true_answers)


def _csv_line(values: Sequence[object]) -> str:
    """Return one line, quoted where it must be."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


WRITERS: dict[PredictionFormat, Callable[[Iterable[ExamplePrediction]], Iterator[str]]] = {
    PredictionFormat.TEXT: as_text, PredictionFormat.JSONL: as_jsonl, PredictionFormat.CSV: as_csv,
}  # fmt: skip
