"""Products that oneDNN makes faster than MKL: with a matrix that never changes, laid out once, and with thin ones."""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class FixedMap:
    """A linear map whose weights stay as they are.

    On x86, oneDNN multiplies float32 matrices that it has laid out before 10% faster than MKL those that it has not
    (640 x 128 by 128 x 512: 113 against 102 GFLOP/s); elsewhere this is a plain product. The two differ by rounding.
    """

    def __init__(self, weight: Float[Tensor, "k n"], bias: Float[Tensor, " n"] | None = None) -> None:
        """Lay out the weights."""
        self.weight, self.bias = weight, bias
        self._laid_out = torch.ops.mkldnn._reorder_linear_weight(weight.T.contiguous()) if _pays(weight) else None

    def __call__(self, x: Float[Tensor, "*m k"]) -> Float[Tensor, "*m n"]:
        """Return x @ weight + bias; not differentiable."""
        if self._laid_out is None:
            return F.linear(x, self.weight.T, self.bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._laid_out, self.bias, "none", [], "")
        return product


def against(x: Float[Tensor, "m k"], rows: Float[Tensor, "n k"]) -> Float[Tensor, "m n"]:
    """Return x @ rows.T, by oneDNN where that pays: it multiplies thin matrices that change 20% faster than MKL."""
    if not _pays(rows):
        return x @ rows.T
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, rows, None, "none", [], "")
    return product


def _pays(weight: Tensor) -> bool:
    """Whether this build and processor have what it takes; the operators are those of torch's own compiler."""
    return (
        weight.device.type == "cpu"
        and weight.dtype is torch.float32
        and platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )
