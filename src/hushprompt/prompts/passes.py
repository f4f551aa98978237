"""Examples of a generative model in passes: what one takes of the memory, and how many go together."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hushprompt.models.generative import GenerativeBackbone

RESIDENT = 1.6
"""Resident memory of a pass over the bytes of its live tensors: between what autograd keeps, the C library's allocator
leaves gaps. Measured with glibc 2.36: 1.5 to 1.7."""


def num_bytes(
    backbone: GenerativeBackbone, num_before: int, num_new: int, num_predictions: int, *, is_recorded: bool,
    is_kept: bool,
) -> int:  # fmt: skip
    """Return the bytes of the tensors of an example that live at once in a pass, about.

    Args:
        backbone: the model.
        num_before: tokens that are read without a record.
        num_new: tokens behind them.
        num_predictions: places where the next token's probabilities are computed.
        is_recorded: whether autograd keeps what the layers make of the new tokens.
        is_kept: whether keys and values of the tokens before are kept elsewhere.
    """
    layers, shared = backbone.num_layers, backbone.key_value_width
    floats = max(num_new, 0 if is_kept else num_before) * backbone.floats_per_token
    floats += 2 * backbone.heads_per_key * num_new * (num_new + num_before)  # the mask
    floats += num_before * layers * shared * (is_recorded + (not is_kept))  # keys and values; joined to the new ones
    floats += num_new * layers * backbone.floats_kept_per_token * is_recorded
    floats += 3 * num_predictions * backbone.vocabulary_size
    return 4 * floats


def most_at_once(memory_mb: int, live: int) -> int:
    """Return how many examples of `live` bytes each stay within `memory_mb` above one's forward pass; at least 1.

    >>> most_at_once(160, 50 * 2**20)
    2
    """
    return max(1, int((memory_mb * 2**20 + live) // (RESIDENT * live)))


def parts(total: int, most: int) -> list[slice]:
    """Cut examples into parts of at most `most`, as even as they can be: a small last one would take its time.

    >>> parts(4, 3)
    [slice(0, 2, None), slice(2, 4, None)]
    """
    size = max(1, -(-total // max(1, -(-total // most))))
    return [slice(start, start + size) for start in range(0, total, size)]


def lean_record() -> torch.autograd.graph.saved_tensors_hooks:
    """Return a context in which autograd does not keep what SiLU makes: it is computed again, to the same bits."""
    return torch.autograd.graph.saved_tensors_hooks(_kept, _again)


def _kept(tensor: Tensor) -> Tensor | tuple[Tensor]:
    """Return what is kept of a tensor: of what SiLU made, what it was made of, which is kept in any case."""
    node: Any = tensor.grad_fn
    return (node._saved_self.detach(),) if node is not None and node.name() == "SiluBackward0" else tensor


def _again(kept: Tensor | tuple[Tensor]) -> Tensor:
    """Return the tensor."""
    return kept if isinstance(kept, Tensor) else F.silu(kept[0])
