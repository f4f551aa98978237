"""What the released code of the DP-FPL paper guarantees, recomputed; prints the table of docs/privacy.md.

The code (linhhtran/DP-FPL at cce74b4) sets sigma = sqrt(T ln(1/delta)) / epsilon with T = rounds, delta = 1e-5. It
clips the mean gradient of a batch of B to C, and adds noise of std sigma C / B: to the gradients of u and of v on the
client, and to the average of the clients' global gradients (divided by the K clients, as is the noise). T releases of
k tensors in which one example can move a tensor by s C / B are one Gaussian mechanism with mu = s sqrt(T k) / sigma.

- One example of B moves the mean of *per-example clipped* gradients by C / B (added or removed) or 2 C / B (replaced).
  The noise is set for the first; the code does not clip per example.
- It moves a *clipped mean* by up to 2 C: that mean lies anywhere in the ball, and one example can turn it around. So
  s = 2 B, for either relation.
- The factors u and v are two releases of one batch; the global prompt is a third. The code charges for one.

Usage: python tools/released_code.py
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hushprompt.privacy.accounting import GaussianReleases, combine_noise_multipliers, epsilon

ROUNDS, BATCH_SIZE, DELTA = 100, 32, 1e-5
CLAIMED = (0.4, 0.2, 0.1, 0.05, 0.01)
TENSORS = {"one release": 1, "u + v": 2, "u + v + global": 3}


@dataclass(frozen=True)
class Reading:
    """One way to read the code's clipping."""

    name: str
    sensitivity: float
    """In units of C / B, for which the noise is set."""


READINGS = (
    Reading("clipped per example (it is not), add/remove", 1.0),
    Reading("clipped per example (it is not), replace one", 2.0),
    Reading("as released: the batch's mean is clipped", 2.0 * BATCH_SIZE),
)


def code_noise_multiplier(claimed: float, rounds: int = ROUNDS, delta: float = DELTA) -> float:
    """Give the code's sigma for a claimed epsilon."""
    return math.sqrt(rounds * math.log(1 / delta)) / claimed


def true_epsilon(claimed: float, sensitivity: float, num_tensors: int, rounds: int = ROUNDS) -> float:
    """Give the epsilon that the exact Gaussian accountant shows for the code's noise.

    Args:
        claimed: the code's `noise` flag, which is its epsilon.
        sensitivity: how far one example can move a tensor, in units of C / B.
        num_tensors: tensors released from one batch.
        rounds: releases of each.
    """
    one = code_noise_multiplier(claimed, rounds) / sensitivity
    releases = GaussianReleases(
        num_steps=rounds, noise_multiplier=combine_noise_multipliers(*[one] * num_tensors), sampling_prob=1.0
    )
    return epsilon(releases, delta=DELTA, relation="add_remove")


def table() -> list[str]:
    """Give the lines of the table, in Markdown."""
    head = "| claimed | sigma | " + " | ".join(f"{reading.name}: {' / '.join(TENSORS)}" for reading in READINGS) + " |"
    lines = [head, "|---" * (2 + len(READINGS)) + "|"]
    for claimed in CLAIMED:
        cells = [
            " / ".join(f"{true_epsilon(claimed, reading.sensitivity, k):.3g}" for k in TENSORS.values())
            for reading in READINGS
        ]
        lines.append(f"| {claimed:g} | {code_noise_multiplier(claimed):.4g} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))  # noqa: T201
