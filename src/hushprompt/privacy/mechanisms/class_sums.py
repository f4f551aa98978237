"""Sums of classes: each example adds one clipped row to the sum of its own class, in parts of one Gaussian release.

**What is proven.** Let the steps of the round have shares b_1, b_2, ... that sum to at most 1. In step j an example
moves one row of the sums by at most C sqrt(b_j) and no other row, whatever its class: L2 sensitivity C sqrt(b_j). Each
step adds N(0, (z C)^2) to every entry, so it is a Gaussian mechanism of multiplier z / sqrt(b_j). What a step's rows
are may depend on earlier releases: adaptive Gaussian mechanisms compose as 1/z^2 = sum of b_j / z^2, exactly (Dong,
Roth, Su 2022, arXiv:1905.02383, Corollary 3.3). Together they are one Gaussian mechanism of multiplier z.

A step may add up outer products x x^T of rows instead (`ClassRows.squares`), scaled to C sqrt(b) for a row of norm 1:
|x x^T|_F = |x|^2 <= 1, so its sensitivity is the same.

Rows of classes that the client is publicly declared not to have are zero, whatever its examples are: an example of such
a class moves nothing. That is a rule of the mechanism, not a look at the data: no refusal tells of such an example.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import dp_accounting
import torch
from torch import Tensor

from hushprompt.privacy.clipping import ClippedSum, clipped_class_sums, clipped_gram
from hushprompt.privacy.config import Channel
from hushprompt.privacy.mechanisms.base import ClassRows, Release, StepMechanism
from hushprompt.privacy.noise import add_gaussian, add_secure_gaussian
from hushprompt.registry import MECHANISMS


@MECHANISMS.register("class_sums")
@dataclass(frozen=True, kw_only=True)
class ClassSumsMechanism(StepMechanism):
    """Clip one row an example, add up each class's rows, and add Gaussian noise to all sums."""

    makes: ClassVar[str] = "sums of classes"

    def event(self) -> dp_accounting.DpEvent:
        """Return one Gaussian event: of all parts together."""
        return dp_accounting.GaussianDpEvent(self.plan.noise_multipliers[self.allowed])

    def clip_in_classes(self, channel: Channel, rows: ClassRows) -> ClippedSum:
        """Return the sums [c, r] of clipped rows, or of outer products, in units of C sqrt(b); zero where not public.

        Raises:
            PrivacyError: the plan does not account for a release on `channel`.
        """
        self.check_declared(channel)
        norm = self.plan.exact_sensitivity(channel, self.clip_norms[channel], self.step)
        if rows.squares:
            summed = clipped_gram(rows.values, norm)
            value = summed.value.new_zeros(len(rows.is_public), len(summed.value))
            value[rows.is_public] = summed.value
            return ClippedSum(value, summed.sensitivity, rows_released=rows.is_public)
        summed = clipped_class_sums(rows.values.double() * norm, rows.labels, len(rows.is_public), norm)
        declared = summed.value.where(rows.is_public[:, None].to(summed.value.device), 0.0)
        # Secure noise is for sums in float64; a simulation's travel like all others.
        value = declared if self.plan.noise_source == "secure" else declared.float()
        return ClippedSum(value, summed.sensitivity, rows_released=rows.is_public)

    def release(self, channel: Channel, summed: ClippedSum) -> Release:
        """Return (sums + N(0, (z C)^2)) / expected count, zero in rows that are publicly empty.

        Guarantee: this step is a Gaussian mechanism of multiplier z / sqrt(b), and all steps of the round together are
        one of the plan's multiplier z.

        Raises:
            PrivacyError: this party may not release on `channel`, the sums are not as sensitive as planned, or this is
                the second release of the step.
        """
        self.begin_release(channel, summed)
        std = self.plan.noise_multipliers[channel] * self.plan.sensitivity(channel, self.clip_norms[channel])
        is_secure = self.plan.noise_source == "secure"
        value = summed.value.double()
        if is_secure:
            noisy = add_secure_gaussian(value, std, summed.sensitivity, self.plan.read)
        else:
            noisy = add_gaussian(value, std, self.rng)
        if summed.rows_released is not None:
            noisy = torch.where(summed.rows_released[:, None], noisy, torch.zeros_like(noisy))
        released: Tensor = noisy / self.expected_count
        return Release(released.float())
