"""The evaluation counts that a run has released, on disk: each is made once, however often a run is resumed.

`metrics.jsonl` holds one line a release: noisy counts, before anything is computed from them. An evaluation that comes
again after a crash finds its line and gives the same counts, a function of what was released before, so no retry can
spend more than was planned. With secure noise a round that is trained again ends in another prompt; its scores are then
those of the first attempt.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hushprompt import files
from hushprompt.config.schema import EvaluationConfig
from hushprompt.errors import ResumeError
from hushprompt.privacy.metrics import RightAnswers
from hushprompt.runs.arm import Arm
from hushprompt.runs.records import from_json

FILE = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class _ReleaseLine:
    """One release."""

    arm: str
    num_rounds: int
    local: list[float]
    """Noisy count of each client; `neighbor` likewise."""
    neighbor: list[float]


class MetricsFile:
    """The releases of all arms of a run folder."""

    def __init__(self, folder: Path) -> None:
        """Read what was released so far; cut off a torn last line, which nobody was shown.

        Raises:
            ResumeError: the file is damaged, so nobody knows what was spent.
        """
        self._path = folder / FILE
        self._released: dict[tuple[str, int], RightAnswers] = {}
        for number, line in enumerate(files.whole_lines(self._path), start=1):
            try:
                entry = from_json(_ReleaseLine, json.loads(line))
                local, neighbor = (np.array(each, dtype=np.float64) for each in (entry.local, entry.neighbor))
                self._released[entry.arm, entry.num_rounds] = RightAnswers(local=local, neighbor=neighbor)
            except ValueError as error:
                raise ResumeError(
                    f"Line {number} of {self._path} is damaged ({error}): what was spent is not known. Start a new run."
                ) from error

    @property
    def num_releases(self) -> int:
        """Releases so far, over all arms."""
        return len(self._released)

    def check(self, arm: Arm, num_done: int, evaluation: EvaluationConfig) -> None:
        """Refuse to go on where the checkpoint knows of evaluations whose releases are not there.

        Raises:
            ResumeError: the file was lost or cut.
        """
        due = {(arm.label, count) for count in range(1, num_done + 1) if evaluation.is_due(count, arm.num_rounds)}
        if not due <= self._released.keys():
            raise ResumeError(
                f"{self._path} lacks releases that the checkpoint counts as made: what was spent is not known. "
                "Start a new run."
            )

    def once(self, arm: Arm, num_done: int, make: Callable[[], RightAnswers]) -> RightAnswers:
        """Return the counts that were released of an arm after `num_done` rounds, or make, write and give them."""
        key = (arm.label, num_done)
        if key not in self._released:
            counts = make()
            local, neighbor = counts.local.tolist(), counts.neighbor.tolist()
            entry = _ReleaseLine(arm=arm.label, num_rounds=num_done, local=local, neighbor=neighbor)
            files.append_line(self._path, json.dumps(dataclasses.asdict(entry)))
            self._released[key] = counts
        return self._released[key]
