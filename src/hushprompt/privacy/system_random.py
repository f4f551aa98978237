"""Uniform draws out of bytes of the operating system's cryptographic generator, for all that must stay secret.

It is seeded by the operating system, kept out of this process, safe across threads and forks, and needs no package. No
draw comes from a pseudo-random stream in between, so there is no seed to guess.

There is one exception. A client of a federation with secure aggregation (`deployment/secure_turn.py`) takes its bytes
from AES-256 in counter mode, under a key that HKDF-SHA256 makes of the run's secret key (which the operating system's
generator made), the whole message that asked, and the client's state before it. So a turn that is taken again, after a
crash or on a store that was brought back, is the same turn, and the difference of two answers shows nothing. What is
claimed then rests on AES and HKDF too, as its masks do anyway.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import UInt64

from hushprompt.errors import PrivacyError

ByteSource = Callable[[int], bytes]
"""Gives so many independent, uniform bytes: `os.urandom` wherever something is released, but for the one exception
above. Tests give others."""


def uniform(size: int, bits: int, read: ByteSource) -> UInt64[np.ndarray, " n"]:
    """Draw uniform whole numbers of so many bits."""
    words = np.frombuffer(read(8 * size), dtype="<u8").astype(np.uint64)
    return words >> np.uint64(64 - bits) if bits else np.zeros(size, dtype=np.uint64)


def uniform_below(size: int, bound: int, read: ByteSource) -> UInt64[np.ndarray, " n"]:
    """Draw uniform whole numbers below a bound, without bias: words beyond the last full cycle are drawn again."""
    words = uniform(size, 64, read)
    last = np.uint64(2**64 - 1 - 2**64 % bound)
    while (beyond := np.flatnonzero(words > last)).size:
        words[beyond] = uniform(beyond.size, 64, read)
    return words % np.uint64(bound)


class SystemDraws(np.random.Generator):
    """A generator for samplers: `random` and `integers` come from the operating system, and there is nothing else.

    Batches must be independent of all that is known, because amplification by sampling rests on it.
    """

    def __init__(self, read: ByteSource = os.urandom) -> None:
        super().__init__(np.random.PCG64(0))  # numpy wants one; nothing is drawn from it
        self._read = read

    def __getattribute__(self, name: str) -> Any:
        """Refuse every other draw, which would come from numpy's own stream.

        Raises:
            PrivacyError: another method is asked for.
        """
        if not name.startswith("_") and name not in ("random", "integers"):
            raise PrivacyError(f"{name} is not drawn from the operating system. Use random or integers.")
        return super().__getattribute__(name)

    def random(self, size: int | tuple[int, ...] = 1, **_: Any) -> Any:  # type: ignore[override]
        """Draw uniform numbers in [0, 1) of 53 bits."""
        shape = (size,) if isinstance(size, int) else tuple(size)
        return (uniform(int(np.prod(shape)), 53, self._read) * 2.0**-53).reshape(shape)

    def integers(self, high: int, *, size: int, **_: Any) -> Any:  # type: ignore[override]
        """Draw uniform whole numbers below `high`."""
        return uniform_below(size, high, self._read).astype(np.int64)
