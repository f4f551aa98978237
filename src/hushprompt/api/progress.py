"""How far a training is: bars in a terminal, lines in a notebook, nothing where nobody looks."""

from __future__ import annotations

import contextlib
import datetime
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column

from hushprompt.privacy import statements
from hushprompt.runs.observer import NoProgress

if TYPE_CHECKING:
    from hushprompt.runs.arm import Arm
    from hushprompt.runs.observer import Observer
    from hushprompt.runs.records import RoundRecord

WIDE = 85
"""Characters of a line beside whose scores an arm's name has room."""


@contextlib.contextmanager
def watching(progress: bool | Observer) -> Iterator[Observer]:
    """Yield an observer of a training.

    Args:
        progress: True shows it if somebody looks, False does not; or an observer of the caller's own.
    """
    console = Console(highlight=False)
    if not isinstance(progress, bool):
        yield progress
    elif progress and console.is_jupyter:
        yield NotebookLines()
    elif progress and console.is_terminal:
        with TrainingBars(console) as bars:
            yield bars
    else:
        yield NoProgress()


class LastScores:
    """Words for a round: loss, the last scores that there were, epsilon so far."""

    def __init__(self, arm: Arm) -> None:
        self._audience = str(arm.plan.config.audience)
        self._simulated = statements.beside_epsilon(arm.plan.release_plan.noise_source)
        self._scores = ""

    def after(self, record: RoundRecord) -> str:
        """Return the words after a round."""
        if record.is_evaluated:
            self._scores = f"local {_percent(record.local)} neighbor {_percent(record.neighbor)} "
        epsilon = record.epsilon[self._audience]
        spent = "inf" if math.isinf(epsilon) else f"{epsilon:.2f}{self._simulated}"
        loss = "-" if math.isnan(record.loss) else f"{record.loss:.2f}"  # no batch had an example
        return f"loss {loss} {self._scores}epsilon {spent}"


def _percent(share: float) -> str:
    """Write a share in whole percent; "-" for a score over nothing."""
    return "-" if math.isnan(share) else f"{100 * share:.0f}"


class NotebookLines:
    """A line for what is encoded and for each arm, in a notebook's output; needs no widgets."""

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}
        self._handle: Any = None
        self._arm = ""
        self._num_rounds = 0
        self._words: LastScores | None = None

    def on_setup(self, what: str, done: int, total: int) -> None:
        """Images are being encoded."""
        self._show(what, f"{what}: {done}/{total}")

    def on_arm(self, arm: Arm, index: int, num_arms: int, num_rounds_done: int) -> None:
        """An arm begins."""
        self._arm, self._num_rounds, self._words = (
            f"{index + 1}/{num_arms} {arm.label}",
            arm.num_rounds,
            LastScores(arm),
        )
        self._show(self._arm, f"{self._arm}: {num_rounds_done}/{arm.num_rounds} rounds")

    def on_round(self, record: RoundRecord) -> None:
        """A round is done."""
        assert self._words is not None, "on_arm comes before on_round"
        words = f"{record.round_index}/{self._num_rounds} rounds, {self._words.after(record)}"
        self._show(self._arm, f"{self._arm}: {words}")

    def _show(self, key: str, line: str) -> None:
        """Write a line in the place of the one of the same key."""
        from IPython.display import display

        self._lines[key] = line
        text = PlainText("\n".join(self._lines.values()))
        if self._handle is None:
            self._handle = display(text, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(text)


@dataclass(frozen=True)
class PlainText:
    """A text that a notebook shows as it is."""

    text: str

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class EncodingBar:
    """A bar of images that are encoded."""

    task: TaskID
    num_done_before: int
    """Images that were on the disk when the bar appeared."""
    start: float

    def speed(self, done: int, total: int) -> str:
        """Say how fast it goes, and how long it will take."""
        seconds = time.monotonic() - self.start
        if done == self.num_done_before or seconds == 0:
            return ""
        rate = (done - self.num_done_before) / seconds
        left = datetime.timedelta(seconds=round((total - done) / rate))
        return f"{rate:.0f}/s" + (f", {left} left" if done < total else "")


class TrainingBars:
    """Two progress bars in a terminal: images encoded, and rounds of the arm in training."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", table_column=Column()),  # breaks first where there is no room
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=5)),
            TextColumn("{task.fields[scores]}", table_column=Column(no_wrap=console.width >= WIDE)),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            console=console,
            expand=True,
        )
        self._task: TaskID | None = None
        self._words: LastScores | None = None
        self._setups: dict[str, EncodingBar] = {}

    def __enter__(self) -> TrainingBars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_setup(self, what: str, done: int, total: int) -> None:
        """Images are being encoded."""
        if what not in self._setups:
            task = self._progress.add_task(what, total=total, scores="")
            self._setups[what] = EncodingBar(task, done, time.monotonic())
        setup = self._setups[what]
        self._progress.update(setup.task, completed=done, scores=setup.speed(done, total))

    def on_arm(self, arm: Arm, index: int, num_arms: int, num_rounds_done: int) -> None:
        """An arm begins."""
        description = f"{index + 1}/{num_arms} {arm.label}"
        self._words = LastScores(arm)
        total = arm.num_rounds or 1
        done = num_rounds_done if arm.num_rounds else 1
        self._task = self._progress.add_task(description, total=total, completed=done, scores="")

    def on_round(self, record: RoundRecord) -> None:
        """A round is done."""
        assert self._task is not None, "on_arm comes before on_round"
        assert self._words is not None, "on_arm comes before on_round"
        self._progress.update(self._task, completed=record.round_index, scores=self._words.after(record))
