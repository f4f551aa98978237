"""One pass through the text tower that goes forward once and backward for many examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Encode = Callable[[Float[Tensor, "*c t e"]], Float[Tensor, "c d"]]
"""From a context to the unit-norm text features of all classes."""


@runtime_checkable
class TextPass(Protocol):
    """The text features of a context, and the gradients of many examples in it."""

    features: Float[Tensor, "c d"]
    """Unit-norm text features, without a record for autograd."""

    def pull_back(self, cotangents: Float[Tensor, "b c d"]) -> Float[Tensor, "b *c t e"]:
        """Multiply each cotangent with the Jacobian of the text features: b gradients in the context."""


class AutogradPass:
    """A pass through any tower by torch's batched gradients."""

    def __init__(self, encode: Encode, context: Float[Tensor, "*c t e"]) -> None:
        """Run the tower on a context."""
        self._leaf = context.detach().requires_grad_()
        with torch.enable_grad():
            self._features = encode(self._leaf)
        self.features = self._features.detach()

    def pull_back(self, cotangents: Float[Tensor, "b c d"]) -> Float[Tensor, "b *c t e"]:
        """Multiply each cotangent with the Jacobian of the text features."""

        def pull_one(cotangent: Float[Tensor, "c d"]) -> Float[Tensor, "*c t e"]:
            return torch.autograd.grad(self._features, self._leaf, cotangent, retain_graph=True)[0]

        rows: Tensor = torch.vmap(pull_one)(cotangents)
        return rows
