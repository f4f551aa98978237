"""Who watches a run: the command line draws bars, trackers write for other tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from hushprompt.runs.arm import Arm
    from hushprompt.runs.records import RoundRecord


@runtime_checkable
class Observer(Protocol):
    """What a run tells while it goes on."""

    def on_setup(self, what: str, done: int, total: int) -> None:
        """Images are being encoded."""

    def on_arm(self, arm: Arm, index: int, num_arms: int, num_rounds_done: int) -> None:
        """An arm begins, or goes on after a resume."""

    def on_round(self, record: RoundRecord) -> None:
        """A round is done and on disk."""


class NoProgress:
    """Shows nothing."""

    def on_setup(self, what: str, done: int, total: int) -> None:
        """Images are being encoded."""

    def on_arm(self, arm: Arm, index: int, num_arms: int, num_rounds_done: int) -> None:
        """An arm begins."""

    def on_round(self, record: RoundRecord) -> None:
        """A round is done."""


class Several:
    """Observers that watch together."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        """Hold them; the first hears everything first."""
        self._observers = observers

    def on_setup(self, what: str, done: int, total: int) -> None:
        """Images are being encoded."""
        for observer in self._observers:
            observer.on_setup(what, done, total)

    def on_arm(self, arm: Arm, index: int, num_arms: int, num_rounds_done: int) -> None:
        """An arm begins, or goes on after a resume."""
        for observer in self._observers:
            observer.on_arm(arm, index, num_arms, num_rounds_done)

    def on_round(self, record: RoundRecord) -> None:
        """A round is done and on disk."""
        for observer in self._observers:
            observer.on_round(record)
