"""Bisection that asks a costly function seldom."""

from __future__ import annotations

import math
from collections.abc import Callable


def smallest(holds: Callable[[float], bool], low: float, high: float, tolerance: float) -> float:
    """Bisect for the smallest value at which a monotone condition holds, from the side where it holds."""
    while high - low > tolerance * high:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


class AtMost:
    """The condition that a falling, positive function is at most some limit.

    What is known answers without asking the function: what holds at a value holds above it.
    """

    def __init__(self, function: Callable[[float], float], limit: float) -> None:
        """Know nothing yet."""
        self._function, self._limit = function, limit
        self._fails, self._holds = (0.0, math.inf), (math.inf, 0.0)  # largest and smallest argument, and values there

    def __call__(self, x: float) -> bool:
        """Return whether it holds at x."""
        if not self._fails[0] < x < self._holds[0]:
            return x >= self._holds[0]
        value = self._function(x)
        if value <= self._limit:
            self._holds = (x, value)
        else:
            self._fails = (x, value)
        return value <= self._limit

    def smallest(self, low: float, high: float, tolerance: float) -> float:
        """Return what `smallest` gives between a value that fails and one that holds, by fewer questions.

        The limit's place is guessed by a power law through what is known, and asked for on both sides of the guess; the
        bisection then answers most of its questions itself.
        """
        for _ in range(3):
            (x, y), (other_x, other_y) = self._fails, self._holds
            if other_x - x <= tolerance * other_x or not 0 < other_y < y < math.inf:
                break
            share = math.log(y / self._limit) / math.log(y / other_y)
            guess = x * (other_x / x) ** share
            for side in (guess * (1 + tolerance / 4), guess * (1 - tolerance / 4)):
                self(side)
        return smallest(self, low, high, tolerance)
