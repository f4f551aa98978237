"""The embedded text tower's backward pass where most (example, class) pairs have weight 0.

The rows are then no longer all tokens times all examples: the prefix has a row for each example, and every pair with a
weight has rows of its own for the tokens of its class. `TowerPass.pull_back` on all pairs is the slow twin.

Axis letters beside the usual ones: p prefix tokens, q pairs, r rows of the pairs' tokens, n all rows (p b + r), m those
that go on (all, or the pairs' ends alone in the last block), s places of the longest suffix, h heads, f = e / h.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt.models.emoji_block import BlockPass, Normed
from hushprompt.models.emoji_layout import Group, Layout, groups


class Pairs:
    """Which pairs have a weight, and where the rows of their tokens lie: as in `Layout`, each pair a suffix."""

    def __init__(self, layout: Layout, weights: Float[Tensor, "c b"]) -> None:
        """Find the pairs."""
        self.num_prefix, self.num_examples = layout.num_prefix, weights.shape[1]
        self.classes, self.examples = weights.nonzero(as_tuple=True)  # [q] each, sorted by class
        of_group = [(group, self.classes[self._range(group.suffixes)]) for group in layout.groups]
        self.groups = groups([(len(classes), group.length) for group, classes in of_group])
        tokens = torch.arange(layout.num_tokens - layout.num_prefix, device=weights.device)
        self.tokens = torch.cat(
            [group.of_tokens(tokens)[classes - group.suffixes.start].flatten() for group, classes in of_group]
        )  # [r] the suffix token of each row
        self.owners = torch.cat(
            [self.examples[group.suffixes].repeat_interleave(group.length) for group in self.groups]
        )  # [r] whose row it is
        rows = torch.arange(len(self.tokens), device=weights.device)
        self.ends = torch.cat([group.of_tokens(rows)[:, -1] for group in self.groups])  # [q] rows of the ends

    def _range(self, suffixes: slice) -> slice:
        """Return which pairs are of some classes in succession."""
        first, behind = torch.searchsorted(self.classes, self.classes.new_tensor([suffixes.start, suffixes.stop]))
        return slice(int(first), int(behind))

    def by_example(self, owners: Int[Tensor, " r"]) -> Int[Tensor, "b most"]:
        """Return each example's rows, filled up with the row behind the last."""
        counts = owners.bincount(minlength=self.num_examples)
        order = owners.argsort(stable=True)
        within = torch.arange(len(owners), device=owners.device) - (counts.cumsum(0) - counts)[owners[order]]
        table = owners.new_full((self.num_examples, int(counts.max())), len(owners))
        return table.index_put((owners[order], within), order)

    def pull_back(self, block: BlockPass, grads: Float[Tensor, "m e"]) -> Float[Tensor, "n e"]:
        """Pull the gradients of a block's output back to its input; writes over what it is given."""
        folded, p, b = block.folded, self.num_prefix, self.num_examples
        prefix = torch.arange(p, device=grads.device).repeat_interleave(b)
        all_rows = torch.cat([prefix, p + self.tokens])
        rows = self.classes if block.is_last else all_rows
        slope = torch.ops.aten.gelu_backward(torch.ones_like(block.raised), block.raised).mul_(block.normed_2.rstd)
        inner = folded.down(grads).mul_(slope[rows])
        grads += _project(block.normed_2, folded.up(inner), rows)
        pulled = self._attend_back(block, grads, rows) @ torch.cat(
            [folded.query.flatten(0, 1), folded.key, folded.value]
        )
        pulled = _project(block.normed_1, pulled, all_rows).mul_(block.normed_1.rstd[all_rows])
        return pulled.index_add_(0, p * b + self.ends, grads) if block.is_last else pulled.add_(grads)

    def _attend_back(
        self, block: BlockPass, grads: Float[Tensor, "m e"], rows: Int[Tensor, " m"]
    ) -> Float[Tensor, "n e3"]:
        """Return the gradients of queries, keys and values side by side."""
        p, b, heads = self.num_prefix, self.num_examples, block.folded.heads
        first = 0 if block.is_last else p * b

        def viewers(values: Float[Tensor, "m *x"], group: Group) -> Float[Tensor, "c v *x"]:
            return group.of_ends(values) if block.is_last else group.of_tokens(values[first:])

        mixed = block.folded.out(grads).unflatten(1, (heads, -1))  # [m, h, f]
        key, value, query, weights = block.key, block.value, block.query[rows], block.weights[rows]
        to_scores = torch.zeros_like(weights)  # of weights, then of scores
        to_scores[..., :p] = torch.einsum("mhf,phf->mhp", mixed, value[:p])
        for group in self.groups:
            own, seen = viewers(mixed, group), group.of_tokens(value[p + self.tokens])
            viewers(to_scores, group)[..., p : p + group.length] = torch.einsum("cvhf,clhf->cvhl", own, seen)
        to_scores *= weights
        to_scores.addcmul_(weights, to_scores.sum(dim=-1, keepdim=True), value=-1)
        parts = grads.new_zeros(p * b + len(self.tokens), 3, *mixed.shape[1:])  # [n, 3, h, f]
        looking = torch.einsum("mhp,phf->mhf", to_scores[..., :p], key[:p])
        of_tokens = parts[p * b :]
        for group in self.groups:
            own = viewers(to_scores, group)[..., p : p + group.length]  # [c, v, h, l]
            tokens = group.of_tokens(of_tokens)
            viewers(looking, group).add_(torch.einsum("cvhl,clhf->cvhf", own, group.of_tokens(key[p + self.tokens])))
            tokens[:, :, 1] = torch.einsum("cvhl,cvhf->clhf", own, viewers(query, group))
            own = viewers(weights, group)[..., p : p + group.length]
            tokens[:, :, 2] = torch.einsum("cvhl,cvhf->clhf", own, viewers(mixed, group))
        parts[(p * b + self.ends) if block.is_last else slice(None), 0] = looking
        of_prefix = parts[: p * b].unflatten(0, (p, b))
        table = self.by_example(self.examples if block.is_last else self.owners)
        to_pairs = (_filled(part[first:], table) for part in (to_scores[..., :p], query, weights[..., :p], mixed))
        own_scores, own_query, own_weights, own_mixed = to_pairs  # [b, most, h, p or f]
        of_prefix[:, :, 1] = torch.einsum("bmhp,bmhf->pbhf", own_scores, own_query)
        of_prefix[:, :, 2] = torch.einsum("bmhp,bmhf->pbhf", own_weights, own_mixed)
        if first:
            scores, own = (part[:first].unflatten(0, (p, b)) for part in (to_scores[..., :p], mixed))
            of_prefix[:, :, 1] += torch.einsum("qbhp,qhf->pbhf", scores, block.query[:p])
            of_prefix[:, :, 2] += torch.einsum("qhp,qbhf->pbhf", block.weights[:p, :, :p], own)
        return parts.flatten(1)


def _project(norm: Normed, grads: Float[Tensor, "n e"], rows: Int[Tensor, " n"]) -> Float[Tensor, "n e"]:
    """Take what would change no norm, in place; see `Normed.project_`."""
    unit = norm.unit[rows]
    return grads.addcmul_((grads * unit).sum(dim=1, keepdim=True), unit, value=-1 / unit.shape[1])


def _filled(values: Float[Tensor, "r *x"], table: Int[Tensor, "b most"]) -> Float[Tensor, "b most *x"]:
    """Gather rows by example, zeros where an example has fewer."""
    return torch.cat([values, values.new_zeros(1, *values.shape[1:])])[table]
