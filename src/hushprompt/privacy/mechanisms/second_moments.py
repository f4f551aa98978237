"""Second moments X^T X and X^T Y: what least squares needs to know, as two parts of one Gaussian release.

**What is proven.** Let x be a row clipped to norm 1, y the indicator of its class, b_1 + b_2 <= 1 the parts. One
example moves the stacked pair

    (C sqrt(b_1) sum of x x^T, C sqrt(b_2) sum of y x^T)

by (C sqrt(b_1) x x^T, C sqrt(b_2) y x^T). |x x^T|_F = |x|^2 <= 1 and |y x^T|_F = |x| <= 1, so the L2 sensitivity is
C sqrt(b_1 |x|^4 + b_2 |x|^2) <= C: C sqrt(b_1) in the first step, C sqrt(b_2) in the second. Both get N(0, (z C)^2) in
every entry: together one Gaussian mechanism of multiplier z, as in `class_sums.py`.

The Gram matrix is released as a square of d^2 entries, each with noise of its own. Its antisymmetric part is noise
alone and independent of the symmetric part, which loses nothing by it: made symmetric, entries off the diagonal have
half the noise variance, as if the d (d + 1) / 2 different ones had been released in the Frobenius norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hushprompt.privacy.clipping import ClippedSum
from hushprompt.privacy.config import Channel
from hushprompt.privacy.mechanisms.base import ClassRows
from hushprompt.privacy.mechanisms.class_sums import ClassSumsMechanism
from hushprompt.registry import MECHANISMS


@MECHANISMS.register("second_moments")
@dataclass(frozen=True, kw_only=True)
class SecondMomentsMechanism(ClassSumsMechanism):
    """Release a Gram matrix in the first step and sums of classes in the second, as rows [d + c, d] of one array."""

    def clip_in_classes(self, channel: Channel, rows: ClassRows) -> ClippedSum:
        """Return clipped rows' Gram matrix above zeros, or, in the second step, zeros above their sums in classes.

        Raises:
            PrivacyError: the plan does not account for a release on `channel`.
        """
        width, num_classes = rows.values.shape[1], len(rows.is_public)
        if self.step == 0:
            is_gram = torch.arange(width + num_classes) < width
            return super().clip_in_classes(channel, ClassRows(rows.values, rows.labels, is_gram, squares=True))
        is_public = torch.cat([torch.zeros(width, dtype=torch.bool), rows.is_public.cpu()])
        return super().clip_in_classes(channel, ClassRows(rows.values, rows.labels + width, is_public))
