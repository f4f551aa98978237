"""Passes through the text tower that go forward once and backward for many examples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt.models.base import TextPass

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

    def for_many(self, num_examples: float) -> TextPass:
        """Return this pass, which has one way only."""
        return self


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


def bytes_held(encode: Encode, context: Float[Tensor, "*c t e"]) -> int:
    """Count the bytes that a pass keeps for its backward pass, the tower's weights among them."""
    sizes: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        AutogradPass(encode, context)
    return sum(sizes.values())


class OrderedPass:
    """A backbone's own pass over a prefix and suffixes, in label order and to the context alone."""

    def __init__(self, inner: TextPass, class_order: Int[Tensor, " c"], num_start: int) -> None:
        """Wrap a pass.

        Args:
            inner: the backbone's pass, whose prefix is the start tokens and the context.
            class_order: which row of its features belongs to each class.
            num_start: number of start tokens.
        """
        self._inner, self._class_order, self._num_start = inner, class_order, num_start
        self._suffix_order = class_order.argsort()
        self.features = inner.features[class_order]

    def pull_back(self, weights: Float[Tensor, "b c"], directions: Float[Tensor, "b d"]) -> Float[Tensor, "b t e"]:
        """Return each example's gradient in the context."""
        return self._inner.pull_back(weights[:, self._suffix_order], directions)[:, self._num_start :]

    def pull_back_matrices(self, cotangents: Float[Tensor, "b c d"]) -> Float[Tensor, "b t e"]:
        """Multiply each cotangent, of whatever rank, with the Jacobian of the text features."""
        return self._inner.pull_back_matrices(cotangents[:, self._suffix_order])[:, self._num_start :]

    def for_many(self, num_examples: float) -> OrderedPass:
        """Let the backbone's pass choose its way."""
        inner = self._inner.for_many(num_examples)
        return self if inner is self._inner else OrderedPass(inner, self._class_order, self._num_start)
