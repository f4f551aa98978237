"""How long a sweep will still take."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from hushprompt.config.schema import RunConfig
from hushprompt.registry import METHODS

Kind = tuple[str, int]
"""Runs of one method and number of rounds are taken to be equally long."""


def kind_of(config: RunConfig) -> Kind:
    """Return what a run's length is guessed from."""
    return METHODS.name_of(config.method), config.training.num_rounds


class Estimate:
    """Learns from the runs that are done, and from how far the others have come."""

    def __init__(self, waiting: Iterable[Kind], num_workers: int) -> None:
        self._waiting = list(waiting)
        self._num_workers = num_workers
        self._seconds: dict[Kind, list[float]] = {}
        self._running: dict[str, tuple[Kind, float, float, float]] = {}  # kind, start, share then, share now

    def progress(self, name: str, kind: Kind, now: float, share_done: float) -> None:
        """A run has begun, or has come so far; the first call tells what of it was done before."""
        if name not in self._running:
            self._waiting.remove(kind)
            self._running[name] = (kind, now, share_done, share_done)
        _, start, before, _ = self._running[name]
        self._running[name] = (kind, start, before, share_done)

    def end(self, name: str, kind: Kind, now: float, *, is_done: bool) -> None:
        """A run has ended; only one that was made from its start to its end is a measurement."""
        if name not in self._running:  # it failed before it began
            self._waiting.remove(kind)
            return
        _, start, before, _ = self._running.pop(name)
        if is_done and before == 0:
            self._seconds.setdefault(kind, []).append(now - start)

    def left(self, now: float) -> float | None:
        """Return the seconds that the sweep will still take; None while nothing is known."""
        running = [self._whole(*run, now) for run in self._running.values()]
        guesses = [whole for whole in running if whole is not None]
        guesses += [value for values in self._seconds.values() for value in values]
        if not guesses:
            return None
        usual = statistics.fmean(guesses)
        left = sum(self._usual(kind, usual) for kind in self._waiting)
        for (kind, start, _, _), whole in zip(self._running.values(), running, strict=True):
            left += max(0.0, (self._usual(kind, usual) if whole is None else whole) - (now - start))
        return left / self._num_workers

    def _usual(self, kind: Kind, otherwise: float) -> float:
        """Return how long a run of this kind takes."""
        return statistics.fmean(self._seconds[kind]) if kind in self._seconds else otherwise

    def _whole(self, kind: Kind, start: float, before: float, share_done: float, now: float) -> float | None:
        """Guess a run's seconds, from those before it or from its own pace."""
        if kind in self._seconds and before == 0:
            return statistics.fmean(self._seconds[kind])
        return (now - start) * (1 - before) / (share_done - before) if share_done > before else None
