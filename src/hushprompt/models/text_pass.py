"""Passes through the text tower that go forward once and backward for many examples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Encode = Callable[[Float[Tensor, "*c t e"]], Float[Tensor, "*s c d"]]
"""From a context, or a stack of them, to the unit-norm text features of all classes."""


class MatrixPass:
    """A pass that can multiply any matrix of cotangents with the Jacobian."""

    features: Float[Tensor, "*s c d"]

    def pull_back(
        self, weights: Float[Tensor, "b *s c"], directions: Float[Tensor, "b *s d"]
    ) -> Float[Tensor, "b *c t e"]:
        """Return each example's gradient in the context."""
        return self.pull_back_matrices(torch.einsum("b...c,b...d->b...cd", weights, directions))

    def pull_back_matrices(self, cotangents: Float[Tensor, "b *s c d"]) -> Float[Tensor, "b *c t e"]:
        """Multiply each cotangent, of whatever rank, with the Jacobian of the text features."""
        raise NotImplementedError


class AutogradPass(MatrixPass):
    """Any tower, by batched gradients of torch."""

    def __init__(self, encode: Encode, context: Float[Tensor, "*c t e"]) -> None:
        """Run the tower on a context."""
        self._leaf = context.detach().requires_grad_()
        with torch.enable_grad():
            self._features = encode(self._leaf)
        self.features = self._features.detach()

    def pull_back_matrices(self, cotangents: Float[Tensor, "b *s c d"]) -> Float[Tensor, "b *c t e"]:
        """Multiply each cotangent, of whatever rank, with the Jacobian of the text features."""

        def pull_one(cotangent: Float[Tensor, "*s c d"]) -> Float[Tensor, "*c t e"]:
            return torch.autograd.grad(self._features, self._leaf, cotangent, retain_graph=True)[0]

        rows: Tensor = torch.vmap(pull_one)(cotangents)
        return rows
