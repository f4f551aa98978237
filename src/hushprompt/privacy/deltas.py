"""Which delta gives an epsilon a meaning: an (epsilon, delta) guarantee may fail outright with probability delta."""

from __future__ import annotations

from hushprompt.errors import PrivacyError

LOWEST, HIGHEST = 1e-100, 0.1
"""A smaller delta drowns in rounding; from the larger on, one unit in ten may be published outright."""


def check_delta(**values: float) -> None:
    """Raise PrivacyError unless each value can be the delta of a guarantee; keywords are the names of settings."""
    for name, delta in values.items():
        if not delta < HIGHEST:
            raise PrivacyError(
                f"{name} must be below {HIGHEST:g}, got {delta:g}: it would allow publishing one unit in ten outright. "
                "Take 1e-5, or 1 / (10 n) or less for n examples."
            )
        if not delta >= LOWEST:
            raise PrivacyError(f"{name} must be at least {LOWEST:g}, got {delta:g}. Take 1e-5, or 1 / (10 n) or less.")
