"""Noise shares: each client adds a part of the noise to its clipped sum, and a server learns the sum of all alone.

Sums and noise are whole numbers on a grid, so they add up exactly modulo 2^64, in any order, under masks or without.
`ShareTerms` says how many clients that are not with the server stand behind any sum that can be opened; noise is shared
among those, so what the others know of their own noise does not count. docs/privacy.md has the proofs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from hushprompt.errors import PrivacyError, ProtocolError

STEPS = 2.0**30
"""Standard deviation of one client's share, in grid steps."""
FARTHEST = 2**52 - 2**40
"""Grid steps from zero at which a client holds an entry of its sum; the rest of 2^52 is for its share of the noise."""
MOST_CLIENTS = 255
"""Of one sum: so many sums of 2^52 stay below 2^60; also the places of a secret sharing over bytes."""


@dataclass(frozen=True, kw_only=True)
class ShareTerms:
    """Who may be gone from a cohort, and who may be with the server."""

    num_clients: int
    """n: clients of a cohort."""
    max_dropouts: int = 0
    """d: of them, so many may be gone."""
    max_colluding: int = 1
    """c: so many may tell the server all they know; at least 1, since each client knows its own noise."""
    rescue: bool = False
    """Whether a step survives the loss of clients in it, by a second message; if not, who is gone is gone before it."""

    def __post_init__(self) -> None:
        """Refuse a cohort that is too small.

        Raises:
            PrivacyError: no sum of these clients would hide any of them.
        """
        n, d, c = self.num_clients, self.max_dropouts, self.max_colluding
        if c < 1 or d < 0:
            raise PrivacyError(
                f"privacy.max_colluding must be at least 1, got {c}, and privacy.max_dropouts at least 0, got {d}: "
                "every client knows its own share of the noise."
            )
        if n > MOST_CLIENTS:
            raise PrivacyError(
                f'privacy.noise_at = "shares" is for at most {MOST_CLIENTS} clients a round, got {n}. Set '
                "training.cohort_size."
            )
        least = max(2 * d + c + 1, d + c + 2) if self.rescue else d + c + 2
        if n < least:
            raise PrivacyError(
                f'privacy.noise_at = "shares" needs at least {least} clients a round with max_colluding = {c}, '
                f"max_dropouts = {d} and rescue = {str(self.rescue).lower()}, got {n}: a sum of fewer hides nobody. "
                'Lower max_dropouts, or use privacy.noise_at = "client".'
            )

    @property
    def least(self) -> int:
        """M = n - d: fewest clients of a sum; also the threshold of every secret sharing."""
        return self.num_clients - self.max_dropouts

    @property
    def honest(self) -> int:
        """Fewest clients that are not with the server in any sum that it can open in a run."""
        return min(map(self.honest_among, range(self.least, self.num_clients + 1)))

    def honest_among(self, num_participants: int) -> int:
        """Return h, the fewest clients that are not with the server in any sum of a step that can be opened.

        Without rescue a sum is over all participants. With it a server may show each client another list of who
        answered; docs/privacy.md proves that it opens one sum, over at least so many.

        Args:
            num_participants: |P|, who was asked to take part in the step; every participant knows it.

        Raises:
            PrivacyError: fewer than `least`, or more than there are.

        >>> ShareTerms(num_clients=10, max_dropouts=2).honest_among(8)
        7
        >>> ShareTerms(num_clients=10, max_dropouts=3, max_colluding=2, rescue=True).honest_among(10)
        4
        """
        if not self.least <= num_participants <= self.num_clients:
            raise PrivacyError(
                f"A sum with noise shares is over {self.least} to {self.num_clients} clients, not over "
                f"{num_participants}: each share is planned for so many."
            )
        if not self.rescue:
            return num_participants - self.max_colluding
        left = self.least - self.max_colluding
        return left - (num_participants - self.least) ** 2 // left


@dataclass(frozen=True)
class ShareGrid:
    """Whole numbers in place of a sum; one client's share of the noise has a deviation of 2^30 steps."""

    step: float
    """Width, in the units of the sum."""

    @classmethod
    def of(cls, std: float, sensitivity: float, size: int, num_honest: int) -> ShareGrid:
        """Return the grid on which `num_honest` shares are together at least the noise that is planned.

        Two neighboring sums differ in one client's vector, which is rounded once: by at most sensitivity + sqrt(L)
        steps. Noise is made larger by as much.

        Args:
            std: planned standard deviation of the noise on the sum; 0: no noise.
            sensitivity: L2 sensitivity of the sum.
            size: L, entries of the sum.
            num_honest: h, see `ShareTerms.honest_among`.

        Raises:
            PrivacyError: so much noise on so many entries that the grid would be too coarse.
        """
        if std == 0:
            return cls(sensitivity / STEPS)
        # 1.1: a half for each of two neighbors, and the rounding of the division below, at most 2^-5 steps.
        lost = 1.1 * (std / sensitivity) * math.sqrt(size / num_honest) / STEPS
        if lost > 0.01:
            raise PrivacyError(
                f"A noise multiplier of {std / sensitivity:.3g} on {size} values is too much for noise shares: "
                "rounding to their grid would cost over 1 %. Use a larger privacy.epsilon."
            )
        return cls(std / (1 - lost) / math.sqrt(num_honest) / STEPS)

    def encode(self, value: Float64[np.ndarray, " l"]) -> Int64[np.ndarray, " l"]:
        """Round a sum to the grid; an entry that is NaN becomes 0, one that is too large is held at 2^52 steps."""
        with np.errstate(over="ignore"):  # what becomes infinite is held back below
            steps = np.nan_to_num(np.rint(value / self.step), posinf=FARTHEST, neginf=-FARTHEST)
        return np.clip(steps, -FARTHEST, FARTHEST).astype(np.int64)

    def decode(self, total: Int64[np.ndarray, " l"], num_participants: int) -> Float64[np.ndarray, " l"]:
        """Return what a sum of encoded vectors stands for.

        Raises:
            ProtocolError: an entry is larger than so many clients can make it: a mask did not cancel, or a client sent
                something else.
        """
        if bool((np.abs(total) > num_participants * 2**52).any()) or bool((total == np.iinfo(np.int64).min).any()):
            raise ProtocolError(
                "The sum of all clients is out of range: nothing of it is used. Ask for the step again."
            )
        return total.astype(np.float64) * self.step
