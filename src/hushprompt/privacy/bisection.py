"""Root finding with few evaluations of an expensive monotone function.

The answer is that of plain bisection, to the last bit, so calibrated noise does not depend on how the root is found.
scipy's root finder narrows down where the root lies, and bisection asks only what that does not tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy.optimize import toms748


def smallest(holds: Callable[[float], bool], low: float, high: float, tolerance: float) -> float:
    """Bisect for the smallest value at which a monotone condition holds, from the side where it holds."""
    while high - low > tolerance * high:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


class AtMost:
    """The condition f(x) <= limit for a falling, positive f.

    Evaluations are remembered: what holds at x holds above it, and what fails at x fails below it.
    """

    def __init__(self, function: Callable[[float], float], limit: float) -> None:
        self._function, self._limit = function, limit
        self._fails, self._holds = (0.0, math.inf), (math.inf, 0.0)  # (x, f(x)) closest to the root on either side

    def __call__(self, x: float) -> bool:
        """Return whether f(x) <= limit."""
        if not self._fails[0] < x < self._holds[0]:
            return x >= self._holds[0]
        return self._evaluate(x) <= self._limit

    def smallest(self, low: float, high: float, tolerance: float) -> float:
        """Return what `smallest` returns between a value that fails and one that holds."""
        self._narrow(tolerance)
        return smallest(self, low, high, tolerance)

    def _evaluate(self, x: float) -> float:
        """Return f(x), and remember it."""
        value = self._function(x)
        if value <= self._limit:
            self._holds = (x, value)
        else:
            self._fails = (x, value)
        return value

    def _narrow(self, tolerance: float) -> None:
        """Find the root of ln f(e^t) - ln limit, which is nearly a line where f is nearly a power of x."""
        (x, y), (other_x, other_y) = self._fails, self._holds
        if x <= 0 or other_x <= x or not 0 < other_y < y < math.inf:
            return  # f jumps, or nothing is known: bisection does it all
        low, high = math.log(x), math.log(other_x)
        known = {low: y, high: other_y}

        def height(t: float) -> float:
            return math.log((known[t] if t in known else self._evaluate(math.exp(t))) / self._limit)

        toms748(height, low, high, xtol=tolerance / 4, maxiter=30, full_output=True, disp=False)
