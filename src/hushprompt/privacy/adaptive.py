"""Clip norms that follow a quantile of the gradients' norms, from counts under noise that are accounted for.

Source: Andrew, Thakkar, McMahan, Ramaswamy 2021, "Differentially Private Learning with Adaptive Clipping"
(arXiv:1905.03871), Algorithm 1 and Theorem 1. Beside a clipped sum, a release gives a noisy count of the contributions
that were not clipped; the clip norm of the next step moves toward the norm below which a wanted share of contributions
lies. Norms are functions of released counts, so they are post-processing and may be anything.

The count is of b - 1/2, with b in [0, 1]: 1 for a contribution well inside the clip norm, 0 for one well outside, on a
ramp between them. So one contribution moves it by at most 1/2 (by 1 where it is exchanged, twice as much, as for the
sum), and the last bits of the others' gradients, which depend on the batch, by next to nothing; a step would turn them
into whole contributions. With noise std s on the count its noise multiplier is 2 s, and sum and count of one batch are
one Gaussian release with 1/z^2 = 1/z_sum^2 + 1/(2 s)^2. Theorem 1 solves this for z_sum given z and s; here the count
gets a share of 1/z^2, which always has a solution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from hushprompt import checks
from hushprompt.privacy.clipping import RAMP

COUNT_SENSITIVITY = 0.5
"""How far one contribution, more or less, moves the count of b - 1/2."""

COUNT_SLOPE = 2 * (1 + RAMP / 2) / RAMP
"""How much more a count moves than a sum, each over its sensitivity, where rounding moves gradients: the steepest rise
of the ramp, at norms up to 1 + RAMP / 2 clip norms, over 1/2."""


@dataclass(frozen=True)
class ClipNorms:
    """The clip norms of the next step: state of a run, known to everyone who sees its releases."""

    shared: Float64[Tensor, ""]
    """Of the global channel, the same for all clients."""
    local: Float64[Tensor, " k"]
    """[k] of the local channel, each client's own."""

    def of(self, client_id: int) -> dict[str, float]:
        """Return a client's norms by channel name."""
        return {"global": float(self.shared), "local": float(self.local[client_id])}

    def with_shared(self, norm: float) -> ClipNorms:
        """Return the norms with another one for the global channel."""
        return ClipNorms(torch.tensor(norm, dtype=torch.float64), self.local)

    def with_local(self, norms: Mapping[int, float | None]) -> ClipNorms:
        """Return the norms with other ones for some clients' local channel; None keeps a client's."""
        local = self.local.clone()
        for client_id, norm in norms.items():
            if norm is not None:
                local[client_id] = norm
        return ClipNorms(self.shared, local)


def first_norms(shared: float, local: float, num_clients: int) -> ClipNorms:
    """Return the norms of the first step."""
    return ClipNorms(torch.tensor(shared, dtype=torch.float64), torch.full((num_clients,), local, dtype=torch.float64))


def sum_multiplier(noise_multiplier: float, count_share: float) -> float:
    """Return z_sum, the noise multiplier of the sum where the count gets `count_share` of 1/z^2.

    >>> round(sum_multiplier(2.0, 0.05), 4)
    2.052
    """
    return noise_multiplier / math.sqrt(1 - count_share)


def count_std(noise_multiplier: float, count_share: float) -> float:
    """Return the noise std of the count: (2 s)^-2 = count_share / z^2.

    >>> round(count_std(2.0, 0.05), 4)
    4.4721
    """
    return COUNT_SENSITIVITY * noise_multiplier / math.sqrt(count_share)


def next_norm(norm: float, noisy_count: float, expected_count: float, *, quantile: float, rate: float) -> float:
    """Move a clip norm by exp(-rate (unclipped share - quantile)); the share is held in [0, 1].

    Args:
        norm: clip norm of the step that was counted, greater than 0.
        noisy_count: released sum of b - 1/2 over its contributions.
        expected_count: public expected number of contributions.
        quantile: share of contributions that should stay unclipped.
        rate: largest relative step, in natural logarithm.

    >>> next_norm(1.0, 5.0, 10.0, quantile=0.5, rate=0.2) == math.exp(-0.1)  # nobody is clipped: clip more
    True
    """
    checks.positive(norm=norm, expected_count=expected_count)
    share = min(max(noisy_count / expected_count + 0.5, 0.0), 1.0)
    smallest, largest = checks.CLIP_NORMS
    return min(max(norm * math.exp(-rate * (share - quantile)), smallest), largest)
