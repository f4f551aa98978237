"""Which examples take part in which step: each sampler says what its theorem needs to know.

A sampler draws the batches of one client for one round. What accounting needs from it is in `num_releases` (in how
many releases an example can take part) and `amplification_for` (the amplification that may be claimed).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from hushprompt import checks
from hushprompt.registry import SAMPLERS
from hushprompt.words import counted


@runtime_checkable
class Sampler(Protocol):
    """What the loop and the plan ask of a sampler."""

    @property
    def steps_per_round(self) -> int:
        """Steps between two records."""
        ...

    def amplification_for(self, num_examples: int) -> float:
        """Return the sampling probability that accounting may use for a client with `num_examples` examples.

        1 claims no amplification.
        """

    @property
    def description(self) -> str:
        """The sampling, in the words of a privacy statement."""

    def num_releases(self, num_rounds: int) -> int:
        """Return how many releases one example can take part in over `num_rounds` rounds."""

    def expected_batch_size(self, num_examples: int) -> float:
        """Return the public expected size of a batch of a client with `num_examples` examples."""

    def batches(self, num_examples: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Draw the batches of one round: `steps_per_round` sorted arrays of example indices."""


class _EveryStep:
    """What samplers share that draw each example on its own in every step."""

    steps_per_round: int

    def amplification_for(self, num_examples: int) -> float:
        """Return the probability with which each of a client's examples is drawn."""
        raise NotImplementedError

    def num_releases(self, num_rounds: int) -> int:
        """Every step may see every example."""
        return num_rounds * self.steps_per_round

    def batches(self, num_examples: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Draw `steps_per_round` independent Poisson samples; a batch may be empty."""
        draws = rng.random((self.steps_per_round, num_examples)) < self.amplification_for(num_examples)
        return [np.flatnonzero(row) for row in draws]


@SAMPLERS.register("poisson")
@dataclass(frozen=True, kw_only=True)
class PoissonSampler(_EveryStep):
    """Each example joins each batch independently with one probability.

    The theorem (privacy amplification by Poisson sampling) needs that nobody outside the client sees who was drawn
    and how many; batch sizes are therefore never reported.
    """

    sampling_prob: float = 0.1
    """Probability q that an example joins a batch, in (0, 1]; the same for all clients."""
    steps_per_round: int = 1
    """Steps between two records; every step draws a fresh batch."""

    def __post_init__(self) -> None:
        checks.positive(sampling_prob=self.sampling_prob, steps_per_round=self.steps_per_round)
        checks.in_range(0, 1, sampling_prob=self.sampling_prob)

    def amplification_for(self, num_examples: int) -> float:
        """The same for all clients."""
        return self.sampling_prob

    @property
    def description(self) -> str:
        """The sampling, in the words of a privacy statement."""
        return f"Poisson sampling with probability {self.sampling_prob:g}"

    def expected_batch_size(self, num_examples: int) -> float:
        """Q n."""
        return self.sampling_prob * num_examples


@SAMPLERS.register("poisson_equal_batches")
@dataclass(frozen=True, kw_only=True)
class EqualBatchesSampler(_EveryStep):
    """Poisson sampling with batches of one expected size at every client, so probabilities differ with client size.

    A client with few examples draws each of them more often and has the larger epsilon; the calibration is for the
    smallest client, and every distinct guarantee is on record. Probabilities follow from public client sizes.
    """

    batch_size: int = 8
    """Expected batch size m; a client with n examples draws each with probability min(1, m / n)."""
    steps_per_round: int = 1
    """Steps between two records; every step draws a fresh batch."""

    def __post_init__(self) -> None:
        checks.positive(batch_size=self.batch_size, steps_per_round=self.steps_per_round)

    def amplification_for(self, num_examples: int) -> float:
        """The probability min(1, m / n)."""
        return min(1.0, self.batch_size / num_examples)

    @property
    def description(self) -> str:
        """The sampling, in the words of a privacy statement."""
        return f"Poisson sampling of {counted(self.batch_size, 'example')} of each client in expectation"

    def expected_batch_size(self, num_examples: int) -> float:
        """The expected size min(m, n)."""
        return float(min(self.batch_size, num_examples))


@SAMPLERS.register("disjoint")
@dataclass(frozen=True, kw_only=True)
class DisjointSampler:
    """Each example goes to exactly one of the batches of a round, chosen uniformly and on its own.

    The choices are independent so that adding or removing one example changes one batch and leaves all others as
    they were; with a shuffle cut into equal pieces every later piece would shift. An example therefore takes part
    in one release per round, and no amplification is claimed. `steps_per_round = 1` is full-batch training.
    """

    steps_per_round: int = 10
    """Number of batches S into which each round's pass over the data is cut."""

    def __post_init__(self) -> None:
        checks.positive(steps_per_round=self.steps_per_round)

    def amplification_for(self, num_examples: int) -> float:
        """No amplification is claimed."""
        return 1.0

    @property
    def description(self) -> str:
        """The sampling, in the words of a privacy statement."""
        return f"{self.steps_per_round} disjoint batches a round, each example in one, no amplification claimed"

    def num_releases(self, num_rounds: int) -> int:
        """Once per round."""
        return num_rounds

    def expected_batch_size(self, num_examples: int) -> float:
        """The expected size n / S."""
        return num_examples / self.steps_per_round

    def batches(self, num_examples: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Put every example into one of the `steps_per_round` batches; a batch may be empty."""
        choice = rng.integers(self.steps_per_round, size=num_examples)
        return [np.flatnonzero(choice == step) for step in range(self.steps_per_round)]


@dataclass(frozen=True, kw_only=True)
class EveryExample:
    """Every example once, in each of the parts of one release: what a method that makes one release has for a sampler.

    The parts of an example's contribution have sensitivities whose squares add up to that of the whole
    (`ReleasePlan.parts`), so together they are one release without sampling.
    """

    steps_per_round: int = 1
    """Parts of the release."""

    @property
    def description(self) -> str:
        """Return what happens to an example; that a release has more than two messages is said."""
        messages = f", in {self.steps_per_round} messages" if self.steps_per_round > 2 else ""
        return f"every example, once, no sampling{messages}"

    def amplification_for(self, num_examples: int) -> float:
        """No amplification is claimed."""
        return 1.0

    def num_releases(self, num_rounds: int) -> int:
        """One a round, however many parts it has; a round that runs again after it was lost makes another one."""
        return num_rounds

    def expected_batch_size(self, num_examples: int) -> float:
        """All n."""
        return float(num_examples)

    def batches(self, num_examples: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Return all examples for every part."""
        return [np.arange(num_examples)] * self.steps_per_round
