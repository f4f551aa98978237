"""One form for every check of a setting: name, value, what is allowed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

from hushprompt.errors import ConfigError, PrivacyError


def positive(**values: float) -> None:
    """Raise ConfigError unless every value is a number greater than 0.

    >>> positive(alpha=0.3)
    """
    for name, value in values.items():
        if math.isnan(value) or value <= 0:
            raise ConfigError(f"{name} must be > 0, got {value}.")


def non_negative(**values: float) -> None:
    """Raise ConfigError unless every value is a number of at least 0."""
    for name, value in values.items():
        if math.isnan(value) or value < 0:
            raise ConfigError(f"{name} must be >= 0, got {value}.")


def finite(**values: float) -> None:
    """Raise ConfigError unless every value is a finite number."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise ConfigError(f"{name} must be a finite number, got {value}.")


CLIP_NORMS = (1e-30, 1e30)
"""Smallest and largest. Below, a bound is lost in the rounding of the smallest floating-point numbers, and the step of
a grid, 2^-30 of the noise, rounds to 0: whoever may choose the clip norm would see sums without noise."""


def clip_norms(**norms: float) -> None:
    """Raise ConfigError unless all are clip norms that floating-point numbers keep to."""
    positive(**norms)
    finite(**norms)
    in_range(*CLIP_NORMS, **norms)


def in_range(low: float, high: float, **values: float) -> None:
    """Raise ConfigError unless every value lies in [low, high]."""
    for name, value in values.items():
        if not low <= value <= high:
            raise ConfigError(f"{name} must lie in [{low}, {high}], got {value}.")


def one_of(allowed: Iterable[str], **values: str) -> None:
    """Raise ConfigError, with the nearest allowed word, unless every value is one of `allowed`."""
    allowed = list(allowed)
    for name, value in values.items():
        if value not in allowed:
            raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.{nearest(value, allowed)}")


CLASSES_IN_FILE = " A file with one class a line is named by data.classes_file."
"""What is said where one text stands for the list of classes."""


def several(*, of: str = "", **values: object) -> None:
    """Raise ConfigError for a text where a list of texts is wanted: its letters would be taken one by one.

    Args:
        of: what else the sentence says.
        values: by the name of the setting.
    """
    for name, value in values.items():
        if isinstance(value, str):
            raise ConfigError(f'{name} must be a list, such as ["{value}"], got {value!r}.{of}')


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest allowed word, or an empty string.

    >>> nearest("promtfl", ["promptfl", "dp_fpl"])
    " Did you mean 'promptfl'?"
    """
    matches = difflib.get_close_matches(word, list(allowed), n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""


LOWEST_DELTA, HIGHEST_DELTA = 1e-100, 0.1
"""A smaller delta drowns in rounding; from the larger on, one unit in ten may be published outright."""


def delta(**values: float) -> None:
    """Raise PrivacyError unless each value can be the delta of a guarantee; keywords are the names of settings."""
    for name, value in values.items():
        if not value < HIGHEST_DELTA:
            raise PrivacyError(
                f"{name} must be below {HIGHEST_DELTA:g}, got {value:g}: it would allow publishing one unit in ten "
                "outright. Take 1e-5, or 1 / (10 n) or less for n examples."
            )
        if not value >= LOWEST_DELTA:
            raise PrivacyError(
                f"{name} must be at least {LOWEST_DELTA:g}, got {value:g}. Take 1e-5, or 1 / (10 n) or less."
            )
