"""Attention in the embedded text tower, on prompts that begin alike: its forward and its backward pass.

A token sees the prefix and, causally, its own suffix. Axis letters as in `emoji_block.py`, and in a group of suffixes
of one length: c suffixes, l tokens of each, v those of them that look (all, or the end alone in the last block).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from hushprompt.models.emoji_layout import Group, Layout
from hushprompt.models.fixed_map import against

if TYPE_CHECKING:
    from hushprompt.models.emoji_block import BlockPass


def attend(
    query: Float[Tensor, "m h f"],
    key: Float[Tensor, "n h f"],
    value: Float[Tensor, "n h f"],
    layout: Layout,
    *,
    is_last: bool,
) -> tuple[Float[Tensor, "m h pl"], Float[Tensor, "m h f"]]:
    """Return who looks how much at the prefix, then at the places of its own suffix, and the values mixed so."""
    p, first = layout.num_prefix, 0 if is_last else layout.num_prefix
    scores = query.new_full((*query.shape[:2], p + layout.longest), -math.inf)
    scores[..., :p] = torch.einsum("mhf,phf->mhp", query, key[:p])
    if first:
        scores[:p, :, :p] += scores.new_full((p, p), -math.inf).triu(diagonal=1).unsqueeze(1)
    for group in layout.groups:
        looking, seen = _viewers(group, query[first:], is_last), group.of_tokens(key[p:])
        own = (looking.unsqueeze(2) * seen.unsqueeze(1)).sum(dim=4)  # [c, v, l, h]
        if not is_last:
            own += own.new_full((group.length, group.length), -math.inf).triu(diagonal=1).unsqueeze(2)
        _viewers(group, scores[first:], is_last)[..., p : p + group.length] = own.transpose(2, 3)
    weights = scores.softmax(dim=-1)
    mixed = torch.einsum("mhp,phf->mhf", weights[..., :p], value[:p])
    for group in layout.groups:
        own_mixed, own_weights = (_viewers(group, part[first:], is_last) for part in (mixed, weights))
        for place, seen in enumerate(group.of_tokens(value[p:]).unbind(1)):
            own_mixed.addcmul_(own_weights[..., p + place, None], seen.unsqueeze(1))
    return weights, mixed


class AttentionBack:
    """Attention's backward pass.

    A query or key matters through its scores alone. So a score's gradient is pulled through the products of the other
    side's vectors with the weights, which are made once for all examples, and never becomes a query or key itself.
    """

    def __init__(self, block: BlockPass, *, to_prefix: bool) -> None:
        """Make those products; fewer where only the prefix is asked for."""
        folded, layout = block.folded, block.layout
        self.folded, self.layout, self.is_last = folded, layout, block.is_last
        self.query, self.first, self.to_prefix, p = block.query, block.num_first, to_prefix, layout.num_prefix
        values = _by_head(block.value[:p] if to_prefix else block.value, folded.out_by_head)
        keys = _by_head(block.key[:p] if to_prefix else block.key, folded.query)
        self.mixed = _by_head(block.mixed, folded.out_by_head)
        self.prefix_values = values[:p].transpose(0, 1).flatten(0, 1)  # [h p, e]
        self.prefix_keys = keys[:p].transpose(0, 1).flatten(0, 1)  # [h p, e]
        self.prefix_weights = block.weights[..., :p].contiguous().unsqueeze(1)  # [m, 1, h, p]
        self.suffixes: list[SuffixBack] = []
        self.ends: EndsAlike | None = None
        if to_prefix and layout.ends_are_alike and not block.is_last:
            self.ends = EndsAlike(layout, self.query, self.prefix_weights.squeeze(1))
            self.query, self.prefix_weights = self.ends.query, self.ends.weights.unsqueeze(1)
        if not to_prefix:
            queries = _by_head(block.query, folded.key_by_head)[self.first :]
            weights = block.weights[self.first :, :, p:]
            self.suffixes = [
                SuffixBack(group, values[p:], keys[p:], queries, weights, is_last=block.is_last)
                for group in layout.groups
            ]

    def pull_back(self, grads: Float[Tensor, "m b e"]) -> Float[Tensor, "w b e"]:
        """Pull gradients of the attention's output back to the norm before it, or to the norm's prefix alone."""
        p, first, heads = self.layout.num_prefix, self.first, self.folded.heads
        total = torch.bmm(grads, self.mixed.mT)  # [m, b, h], each head's sum over all that is seen
        if self.ends is not None:
            grads, total = self.ends.join(grads), self.ends.join(total)
        flat = grads.flatten(0, 1)
        scores = against(flat, self.prefix_values).view(*total.shape, p)
        scores.sub_(total.unsqueeze(3)).mul_(self.prefix_weights)
        if self.to_prefix:
            return self._keys_and_looks(scores).add_(self._values_at_once(grads))
        mixed = self.folded.out(flat).view_as(grads)
        pulled = grads.new_empty(self.layout.num_tokens, *grads.shape[1:])
        torch.add(self._keys_and_looks(scores), self._values(mixed), out=pulled[:p])
        own = pulled[p:]
        looking, value = grads.new_empty(grads.shape) if self.is_last else own, torch.empty_like(own)
        for suffixes in self.suffixes:
            suffixes.pull_back(grads[first:], total[first:], looking=looking, seen=own)
            suffixes.pull_back_values(mixed[first:], value)
        looking.flatten(0, 1).addmm_(scores[first:].view(-1, heads * p), self.prefix_keys)
        if self.is_last:
            own.index_add_(0, self.layout.ends, looking)
        own.flatten(0, 1).addmm_(value.flatten(0, 1), self.folded.value)
        return pulled

    def _keys_and_looks(self, scores: Float[Tensor, "m b h p"]) -> Float[Tensor, "p b e"]:
        """Pull scores back to the prefix, as what is looked at and as what looks."""
        num_examples, size = scores.shape[1], self.query.shape[2]
        key = scores.new_empty(num_examples, scores.shape[3], len(self.folded.key))  # [b, p, e]
        for head in range(self.folded.heads):
            query = self.query[:, head].expand(num_examples, -1, -1)
            key[:, :, head * size : (head + 1) * size] = torch.bmm(scores[:, :, head].permute(1, 2, 0), query)
        pulled = (key @ self.folded.key).transpose(0, 1)
        return pulled + scores[: self.first].flatten(2) @ self.prefix_keys if self.first else pulled

    def _values(self, mixed: Float[Tensor, "m b e"]) -> Float[Tensor, "p b e"]:
        """Pull back to the prefix's values."""
        num_examples, size = mixed.shape[1], self.query.shape[2]
        value = mixed.new_empty(num_examples, self.layout.num_prefix, mixed.shape[2])  # [b, p, e]
        for head in range(self.folded.heads):
            part = slice(head * size, (head + 1) * size)
            weights = self.prefix_weights[:, 0, head].T.expand(num_examples, -1, -1)
            value[:, :, part] = torch.bmm(weights, mixed[:, :, part].transpose(0, 1))
        return (value @ self.folded.value).transpose(0, 1)

    def _values_at_once(self, grads: Float[Tensor, "m b e"]) -> Float[Tensor, "p b e"]:
        """Do so where nothing else asks for `mixed`: over the tokens first, then through the attention's output."""
        weights = self.prefix_weights[:, 0].permute(1, 2, 0).flatten(0, 1)  # [h p, m]
        by_head = torch.mm(weights, grads.flatten(1)).view(self.folded.heads, -1, grads.shape[2])  # [h, p b, e]
        value = torch.bmm(by_head, self.folded.out_by_head.mT).transpose(0, 1).flatten(1)  # [p b, h f]
        return (value @ self.folded.value).view(-1, *grads.shape[1:])


class EndsAlike:
    """End tokens of the first block, joined: to the prefix all that stand at one position look alike.

    They are the same token there, so they ask the same; what differs is how much of a look is left for their own
    suffix. So each head has one row for all of them, in which a token's gradient counts with its look's share that goes
    to the prefix.
    """

    def __init__(self, layout: Layout, query: Float[Tensor, "n h f"], weights: Float[Tensor, "n h p"]) -> None:
        """Find the shares, and what each head looks at."""
        self._layout, p, heads = layout, layout.num_prefix, query.shape[1]
        is_other = torch.ones(layout.num_tokens, dtype=torch.bool, device=query.device)
        is_other[p + layout.ends] = False
        self._others = is_other.nonzero().squeeze(1)
        self._shares: list[Float[Tensor, "h c"]] = []
        all_weights, all_queries = [weights[self._others]], [query[self._others]]
        for group in layout.groups:
            looks = group.of_tokens(weights[p:])[:, -1]  # [c, h, p]
            look = looks.sum(dim=0)  # [h, p], up to its sum the same for all of them
            look = look / look.sum(dim=1, keepdim=True).clamp(min=torch.finfo(look.dtype).tiny)
            self._shares.append(looks.sum(dim=2).T)
            all_weights.append(torch.diag_embed(look.T).permute(1, 2, 0))  # a row has weights of its own head alone
            all_queries.append(group.of_tokens(query[p:])[:1, -1].expand(heads, -1, -1))
        self.weights: Float[Tensor, "r h p"] = torch.cat(all_weights)
        """Of the tokens that are not ends, then of each length's heads."""
        self.query: Float[Tensor, "r h f"] = torch.cat(all_queries)

    def join(self, values: Float[Tensor, "n b x"]) -> Float[Tensor, "r b x"]:
        """Sum gradients up to these rows."""
        joined = values.new_empty(len(self.weights), *values.shape[1:])
        start = len(self._others)
        torch.index_select(values, 0, self._others, out=joined[:start])
        for group, shares in zip(self._layout.groups, self._shares, strict=True):
            ends = group.of_tokens(values[self._layout.num_prefix :])[:, -1]
            torch.mm(shares, ends.flatten(1), out=joined[start : start + len(shares)].flatten(1))
            start += len(shares)
        return joined


class SuffixBack:
    """Attention's backward pass inside the suffixes of one length."""

    def __init__(
        self,
        group: Group,
        values: Float[Tensor, "k h e"],
        keys: Float[Tensor, "k h e"],
        queries: Float[Tensor, "q h e"],
        weights: Float[Tensor, "q h s"],
        *,
        is_last: bool,
    ) -> None:
        """Pick what belongs to the group."""
        self.group, self.is_last = group, is_last
        self.values = group.of_tokens(values).flatten(1, 2).mT  # [c, e, l h]
        self.keys = group.of_tokens(keys).flatten(1, 2)  # [c, l h, e]
        self.queries = _viewers(group, queries, is_last).flatten(1, 2)  # [c, v h, e]
        own = _viewers(group, weights, is_last)[..., : group.length].transpose(2, 3)  # [c, v, l, h]
        self.weights = own.unsqueeze(2).contiguous()  # [c, v, 1, l, h]
        size = values.shape[2] // values.shape[1]
        self.spread_weights = own.repeat_interleave(size, dim=3).unsqueeze(3)  # [c, v, l, 1, e]
        if not is_last:
            self.keys = torch.cat([self.keys, self.queries], dim=1)

    def pull_back(
        self,
        grads: Float[Tensor, "q b e"],
        total: Float[Tensor, "q b h"],
        *,
        looking: Float[Tensor, "q b e"],
        seen: Float[Tensor, "k b e"],
    ) -> None:
        """Write what comes to the tokens as those that look and as what is seen; both in one where all look."""
        grads, total, looking = (_viewers(self.group, part, self.is_last) for part in (grads, total, looking))
        own = torch.bmm(grads.flatten(1, 2), self.values).view(*total.shape[:3], self.group.length, -1)
        own.sub_(total.unsqueeze(3)).mul_(self.weights)  # [c, v, b, l, h]
        by_viewer, by_seen = own.flatten(3), own.transpose(1, 3).flatten(3)  # [c, v, b, l h], [c, l, b, v h]
        seen = self.group.of_tokens(seen)
        if self.is_last:
            torch.bmm(by_seen.flatten(1, 2), self.queries, out=_joined(seen))
        else:
            by_viewer = torch.cat([by_viewer, by_seen], dim=3)
        torch.bmm(by_viewer.flatten(1, 2), self.keys, out=_joined(looking))

    def pull_back_values(self, mixed: Float[Tensor, "q b e"], value: Float[Tensor, "k b e"]) -> None:
        """Write what comes to the tokens' values."""
        mixed, value = _viewers(self.group, mixed, self.is_last), self.group.of_tokens(value)
        torch.mul(mixed[:, -1:], self.spread_weights[:, -1], out=value)  # the last one sees all
        for viewer in range(mixed.shape[1] - 1):
            seen = slice(viewer + 1)
            value[:, seen].addcmul_(mixed[:, viewer, None], self.spread_weights[:, viewer, seen])


def _by_head(vectors: Float[Tensor, "n h f"], maps: Float[Tensor, "h f e"]) -> Float[Tensor, "n h e"]:
    """Multiply each head's vectors with its map."""
    return torch.bmm(vectors.transpose(0, 1), maps).transpose(0, 1)


def _viewers(group: Group, values: Float[Tensor, "q *x"], is_last: bool) -> Float[Tensor, "c v *x"]:
    """View what there is for those tokens of the group that look."""
    return group.of_ends(values) if is_last else group.of_tokens(values)


def _joined(values: Float[Tensor, "c v b e"]) -> Float[Tensor, "c vb e"]:
    """View tokens and examples as one axis."""
    return values.view(len(values), -1, values.shape[3])
