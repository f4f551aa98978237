"""The embedded text tower on prompts that begin alike: forward and backward, written out.

All prompts share a prefix and differ in a short suffix. The prefix is read once; a suffix token sees the prefix and its
own suffix, causally. All tokens lie in one matrix [n, e], so each linear map is one product.

The backward pass takes many cotangents at once, one for each example of a batch. An example's cotangents for all
classes are one direction times one weight each, and that is still so behind the normalization, the projection and the
final norm, up to two vectors that each class adds; so the products there are taken once for a direction and once for a
class, not for every pair. `TextTower.forward` and plain autograd are the slow twin.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hushprompt.models.embedded_network import TextBlock, TextTower
from hushprompt.models.emoji_block import BlockPass, FoldedBlock, Lift, Normed, into_norm, project_
from hushprompt.models.emoji_layout import layout
from hushprompt.models.emoji_pairs import Pairs
from hushprompt.models.emoji_products import Products

MAX_SHARE_OF_PAIRS = 0.5
"""Share of (example, class) pairs with a weight up to which it is faster to gather them: measured, 0.55."""
MIN_MANY = 80
"""Examples of one context in all from which on its products pay: they take 150 ms and save each example 1.9 ms."""


class PrefixTower:
    """A frozen text tower that reads the common beginning of prompts once."""

    def __init__(self, tower: TextTower) -> None:
        """Prepare the weights."""
        self.tower = tower
        self.blocks: list[FoldedBlock] = []
        for block in tower.blocks:
            assert isinstance(block, TextBlock)
            self.blocks.append(FoldedBlock(block))
        self.final = into_norm(tower.projection.weight, tower.norm_final)  # [d, e]
        self._products: tuple[TowerPass, Products] | None = None
        self._lock = threading.Lock()

    def encode(self, prefix: Float[Tensor, "p e"], suffixes: Sequence[Float[Tensor, "_ _ e"]]) -> Float[Tensor, "c d"]:
        """Return unit-norm features, differentiable once, in `prefix`, also for batched gradients.

        Args:
            prefix: [p, e] embedded tokens that all prompts begin with.
            suffixes: one [count, length, e] for each length: what follows the prefix, up to the end token.

        Returns:
            [c, d] features in the order of `suffixes`.
        """
        features: Tensor = _Encode.apply(prefix, self, suffixes)
        return features

    def read(self, prefix: Float[Tensor, "p e"], suffixes: Sequence[Float[Tensor, "_ _ e"]]) -> TowerPass:
        """Return the same features with the backward pass of many examples."""
        with torch.inference_mode():
            tower_pass = TowerPass(self, prefix, suffixes)
        tower_pass.features = tower_pass.features.clone()
        return tower_pass

    @torch.inference_mode()
    def products_of(self, tower_pass: TowerPass) -> Products:
        """Return a pass's products; those of one pass are kept, some 50 MB."""
        with self._lock:
            kept = self._products
            if kept is None or kept[0] is not tower_pass or kept[1].has_failed:
                kept = self._products = (tower_pass, tower_pass.new_products())
        kept[1].make()
        return kept[1]


class TowerPass:
    """The tower's forward pass on prompts that begin alike, and its backward pass to the prefix."""

    products: Products | None = None
    """What does not depend on examples, where many are to come."""

    def __init__(
        self, tower: PrefixTower, prefix: Float[Tensor, "p e"], suffixes: Sequence[Float[Tensor, "_ _ e"]]
    ) -> None:
        """Run the tower."""
        self._tower, network = tower, tower.tower
        shapes = tuple((len(group), group.shape[1]) for group in suffixes)
        are_alike = all(bool((group[:, -1] == group[0, -1]).all()) for group in suffixes)
        self._layout = layout(len(prefix), shapes, prefix.device, ends_are_alike=are_alike)
        self._final = tower.final
        x = torch.cat([prefix, *(group.flatten(0, 1) for group in suffixes)])
        x = x + network.positional_embedding[self._layout.positions]
        self._blocks: list[BlockPass] = []
        for folded in tower.blocks:
            self._blocks.append(BlockPass(folded, x, self._layout, is_last=folded is tower.blocks[-1]))
            x = self._blocks[-1].output
        self._normed = Normed(network.norm_final, x)
        projected = self._normed.value @ network.projection.weight.T
        length = projected.norm(dim=1, keepdim=True)
        self._scale = self._normed.rstd / length  # [c, 1] what normalization and final norm divide by
        self.features = projected / length
        """[c, d] unit-norm features in the order of the suffixes."""

    def pull_back(self, weights: Float[Tensor, "b c"], directions: Float[Tensor, "b d"]) -> Float[Tensor, "b p e"]:
        """Return each example's gradient in the prefix; class c's cotangent is `weights[c]` times its direction."""
        with torch.inference_mode():  # a tenth faster than `no_grad` where operators are small
            are_few = weights.count_nonzero() < MAX_SHARE_OF_PAIRS * weights.numel()
            rows = (self.pull_back_pairs if are_few else self.pull_back_all)(weights, directions)
        return rows.clone()  # what was made in that mode could not be differentiated

    def for_many(self, num_examples: float) -> TowerPass:
        """Return this pass, or the same with products."""
        if num_examples < MIN_MANY or self.products is not None:
            return self
        other = copy.copy(self)
        other.products = self._tower.products_of(self)
        return other

    def new_products(self) -> Products:
        """Lay out the products of this pass, which are still to be made."""
        return Products(self._blocks)

    def pull_back_all(self, weights: Float[Tensor, "b c"], directions: Float[Tensor, "b d"]) -> Float[Tensor, "b p e"]:
        """Do so with the same work for every pair."""
        unit, down = self._normed.unit, self._blocks[-1].folded.down
        shared, own = directions @ self._final, self.features @ self._final  # [b, e], [c, e]
        cosine = self.features @ directions.T  # [c, b]; the normalization takes cosine * own from shared
        along = unit @ shared.T - cosine * torch.linalg.vecdot(unit, own).unsqueeze(1)  # the norm takes that from both
        scale = weights.T.contiguous() * self._scale
        factors = torch.stack([scale * -cosine, scale * along / -unit.shape[1]], dim=2)  # [c, b, 2]
        each = torch.stack([own, unit], dim=1)  # [c, 2, e]
        scale, lifted, each_lifted = scale.unsqueeze(2), down(shared), down(each)

        def lift(tokens: slice) -> Float[Tensor, "w b g"]:
            return (scale[tokens] * lifted).baddbmm_(factors[tokens], each_lifted[tokens])

        return self._through_blocks((scale * shared).baddbmm_(factors, each), lift)

    def pull_back_pairs(
        self, weights: Float[Tensor, "b c"], directions: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b p e"]:
        """Do so with work for those pairs alone whose weight is not 0."""
        pairs = Pairs(self._layout, weights.T)
        classes, examples = pairs.classes, pairs.examples
        if not len(classes):
            return directions.new_zeros(len(directions), self._layout.num_prefix, self._final.shape[1])
        unit, feature = self._normed.unit[classes], self.features[classes]
        cosine = torch.linalg.vecdot(feature, directions[examples]).unsqueeze(1)
        grads = (directions @ self._final)[examples] - cosine * (self.features @ self._final)[classes]
        grads -= torch.linalg.vecdot(grads, unit).unsqueeze(1) / unit.shape[1] * unit
        grads *= weights[examples, classes].unsqueeze(1) * self._scale[classes]
        for block in reversed(self._blocks):
            grads = pairs.pull_back(block, grads)
        prefix = grads[: pairs.num_prefix * pairs.num_examples].unflatten(0, (pairs.num_prefix, -1))
        return prefix.transpose(0, 1)

    def pull_back_matrices(self, cotangents: Float[Tensor, "b c d"]) -> Float[Tensor, "b p e"]:
        """Return the prefix's gradient for cotangents of any form."""
        cotangents = cotangents.transpose(0, 1).contiguous()  # [c, b, d]
        cosine = torch.bmm(cotangents, self.features.unsqueeze(2))
        cotangents = cotangents - cosine * self.features.unsqueeze(1)
        grads = project_(cotangents @ self._final, self._normed.unit.unsqueeze(1))
        return self._through_blocks(grads.mul_(self._scale.unsqueeze(1)))

    def _through_blocks(self, grads: Float[Tensor, "c b e"], lift: Lift | None = None) -> Float[Tensor, "b p e"]:
        """Go back from the last block's output to the prefix; the suffixes' own embeddings are constants."""
        for index in reversed(range(len(self._blocks))):
            products = None if self.products is None else self.products.made[index]
            grads = self._blocks[index].pull_back(grads, lift, to_prefix=index == 0, products=products)
            lift = None
        return grads.transpose(0, 1)


class _Encode(torch.autograd.Function):
    """From prefix to features; keeps the forward pass for the backward pass."""

    @staticmethod
    def forward(ctx: Any, prefix: Tensor, tower: PrefixTower, suffixes: Sequence[Tensor]) -> Tensor:
        """Run the tower."""
        ctx.tower_pass = TowerPass(tower, prefix, suffixes)
        return ctx.tower_pass.features

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:
        """Hand over to a function that knows what to do under vmap."""
        return _PullBack.apply(cotangent, ctx.tower_pass), None, None


class _PullBack(torch.autograd.Function):
    """From a cotangent to the prefix's gradient: one, or under vmap a batch."""

    @staticmethod
    def forward(cotangent: Tensor, tower_pass: TowerPass) -> Tensor:
        """Pull one back."""
        return tower_pass.pull_back_matrices(cotangent[None])[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing: there is no second derivative."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], cotangents: Tensor, tower_pass: TowerPass) -> tuple[Tensor, int]:
        """Pull a batch back."""
        return tower_pass.pull_back_matrices(cotangents.movedim(in_dims[0], 0)), 0
