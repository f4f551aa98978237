"""A mechanism whose unit is a group of examples: what a group adds is one contribution before anything is released.

**What is proven.** *Gradients*: the contribution of a group is a sum of its clipped gradients, whatever it is, clipped
as one to C by the mechanism itself: the sum over groups moves by at most C when a group joins or leaves. *Rows of class
sums*: a group of m rows phi_1, ..., phi_m, each clipped to the bound C, adds phi_j / m to the sum of its class. All
sums together move by at most |phi_1| / m + ... + |phi_m| / m <= C. *Squares*: it adds x_j x_j^T / m with |x_j| <= 1, in
Frobenius norm at most C (1 / m + ... + 1 / m) = C. Groups of one add what an example adds, bit for bit.

A batch whose mean is clipped has no contribution of a group, so such methods are refused (`plan.py`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hushprompt.errors import PrivacyError
from hushprompt.privacy.clipping import ClippedSum, clip_factors, group_contributions, group_shares
from hushprompt.privacy.config import Channel
from hushprompt.privacy.mechanisms.base import ClassRows
from hushprompt.privacy.mechanisms.observed import WrappedMechanism


@dataclass(frozen=True)
class GroupedMechanism(WrappedMechanism):
    """A mechanism that clips groups of rows, where the one inside would clip rows."""

    of_rows: Int64[Tensor, " b"] | None = None
    """Number of the group of each row of the batch; None: this party has no batch, and clips nothing."""

    @property
    def groups(self) -> Int64[Tensor, " b"] | None:
        """Number of the group of each row of the batch."""
        return self.of_rows

    def clip(self, channel: Channel, grads: Float[Tensor, "b *p"]) -> ClippedSum:
        """Clip each group's contribution as one, and add them up.

        Raises:
            PrivacyError: there is not one group for each row.
        """
        rows = group_contributions(grads, self._groups_of(grads), self.clip_norms[channel])
        return self.inner.clip(channel, rows)

    def clip_in_classes(self, channel: Channel, rows: ClassRows) -> ClippedSum:
        """Clip each row, divide a group's rows by their number, and add up the rows of each class.

        Raises:
            PrivacyError: there is not one group for each row.
        """
        shares = group_shares(self._groups_of(rows.values)).to(rows.values.device)[:, None]
        wide = rows.values.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        clipped = clip_factors(rows.values.double(), 1.0)[:, None] * wide * (shares.sqrt() if rows.squares else shares)
        values = torch.where(shares == 1, rows.values.double(), clipped)
        return self.inner.clip_in_classes(channel, dataclasses.replace(rows, values=values))

    def clip_batch(self, channel: Channel, *means: Float[Tensor, "..."]) -> ClippedSum:
        """Refuse to clip a batch's mean gradient: a group has no contribution of its own in it.

        Raises:
            PrivacyError: always.
        """
        raise PrivacyError('A clipped batch is not accounted for with privacy.privacy_unit = "group".')

    def among(self, rows: Tensor) -> GroupedMechanism:
        """Return the mechanism for a part of the batch's rows."""
        kept = None if self.of_rows is None else self.of_rows[rows.to(self.of_rows.device)]
        return dataclasses.replace(self, inner=self.inner.among(rows), of_rows=kept)

    def _groups_of(self, rows: Tensor) -> Int64[Tensor, " b"]:
        if self.of_rows is None or len(self.of_rows) != len(rows):
            raise PrivacyError(
                f"Groups of {'no' if self.of_rows is None else len(self.of_rows)} rows are known, and {len(rows)} rows "
                "came to be clipped. A method must clip one row for each example of its batch, in the batch's order."
            )
        return self.of_rows.to(rows.device)
