"""How often a client's SuperNode looks for messages: often while a run goes on, seldom while none does."""

from __future__ import annotations

import time
from collections.abc import Callable

IDLE_S = 3.0
"""Seconds that Flower's SuperNode waits before it looks for a message again."""
SOON_S = 1.0
"""Seconds that it waits instead while messages come: a round has several, and each waits for it."""
AWAKE_S = 30.0
"""Seconds after the start and after each message in which the next one is expected."""
ANSWER_S = 0.1
"""Seconds between two looks for the answer of its own process, which Flower takes every half second."""


class Pace:
    """Stands for the module `time` in SuperNode's loop, which has no setting for its waits."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Expect a message: the process has just begun.

        Args:
            clock: gives seconds.
            sleep: waits so many seconds.
        """
        self._clock, self._wait = clock, sleep
        self._awake_until = clock() + AWAKE_S

    def sleep(self, seconds: float) -> None:
        """Wait, but shorter than Flower asks while a run goes on; less than `IDLE_S` is asked for an answer only."""
        if seconds < IDLE_S:
            self._awake_until = self._clock() + AWAKE_S
            self._wait(min(seconds, ANSWER_S))
        else:
            self._wait(SOON_S if self._clock() < self._awake_until else seconds)
