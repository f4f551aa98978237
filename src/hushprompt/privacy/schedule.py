"""Who takes part in which round: drawn before the first one, and public.

The schedule deals clients like cards: a random permutation of all clients is dealt out, cohort by cohort, then the next
one. At any time every client has taken part equally often, up to one round. It depends on the seed and on public
numbers alone, so a client's rounds can be counted, and nothing is claimed from hiding them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from hushprompt import checks
from hushprompt.errors import ConfigError


@dataclass(frozen=True)
class Cohorts:
    """The public schedule of one arm."""

    members: Int[np.ndarray, "rounds m"]
    """Clients of each round, sorted."""
    num_clients: int
    """All clients k, in a cohort or not."""

    def __len__(self) -> int:
        """Number of rounds."""
        return len(self.members)

    def __getitem__(self, round_index: int) -> Int[np.ndarray, " m"]:
        """Return the cohort of a round, counted from 0."""
        return self.members[round_index]

    @property
    def cohort_size(self) -> int:
        """Clients m of each round."""
        return self.members.shape[1]

    @property
    def is_partial(self) -> bool:
        """Whether some clients sit a round out."""
        return self.cohort_size < self.num_clients

    def rounds_of_clients(self) -> Int[np.ndarray, " k"]:
        """Count the rounds that each client takes part in."""
        return np.bincount(self.members.ravel(), minlength=self.num_clients)

    @functools.cached_property
    def most_rounds(self) -> Int[np.ndarray, " _"]:
        """[rounds + 1] after 0, 1, 2, ... rounds: how many of them the client with the most has taken part in."""
        counts = np.zeros(self.num_clients, dtype=np.int64)
        most = np.zeros(len(self) + 1, dtype=np.int64)
        for index, cohort in enumerate(self.members):
            counts[cohort] += 1
            most[index + 1] = max(most[index], counts[cohort].max())
        return most


def draw_cohorts(num_clients: int, cohort_size: int | None, num_rounds: int, rng: np.random.Generator) -> Cohorts:
    """Deal `num_rounds` cohorts of `cohort_size` different clients; None: everyone, every round.

    Raises:
        ConfigError: there are fewer clients than a cohort takes.
    """
    size = num_clients if cohort_size is None else cohort_size
    checks.positive(cohort_size=size)
    if size > num_clients:
        raise ConfigError(
            f"training.cohort_size must be at most the number of clients, {num_clients}, got {size}. Use a smaller "
            'cohort, or "none" for everyone.'
        )
    if size == num_clients:
        return Cohorts(np.broadcast_to(np.arange(num_clients), (num_rounds, num_clients)), num_clients)
    dealt = np.empty(0, dtype=np.int64)
    members = np.empty((num_rounds, size), dtype=np.int64)
    for index in range(num_rounds):
        if len(dealt) < size:
            dealt = np.concatenate([dealt, _permutation(num_clients, dealt, size - len(dealt), rng)])
        members[index] = np.sort(dealt[:size])
        dealt = dealt[size:]
    return Cohorts(members, num_clients)


def survivors(
    cohort: Int[np.ndarray, " m"], dropout_rate: float, rng: np.random.Generator
) -> Int[np.ndarray, " survivors"]:
    """Return the clients of a cohort that do not fail; each one fails on its own, whatever its data."""
    return cohort[rng.random(len(cohort)) >= dropout_rate]


def _permutation(
    num_clients: int, left: Int[np.ndarray, " _"], num_first: int, rng: np.random.Generator
) -> Int[np.ndarray, " k"]:
    """Shuffle all clients so that the first `num_first` are none of those `left`, who share a cohort with them."""
    others = rng.permutation(np.setdiff1d(np.arange(num_clients), left))
    return np.concatenate([others[:num_first], rng.permutation(np.concatenate([left, others[num_first:]]))])
