"""From what clients send to what the shared prompt is moved by.

All that lies between a client's clipped sum and the server is here. `pack` and `pack_private` decide what travels,
`unpack_sum` and `average` make one thing of what arrived. `pack_share` is for a server that need not be trusted: a
deployed client masks it before it leaves, and a simulation adds up the same whole numbers without masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hushprompt.methods.base import Method, Shared, Upload
from hushprompt.privacy.clipping import ClippedSum, add_up
from hushprompt.privacy.config import Channel
from hushprompt.privacy.mechanisms.base import Mechanism
from hushprompt.runs.state import flatten, restore


class PayloadKind(StrEnum):
    """What a client hands to the server."""

    SHARES = "shares"
    """Its clipped sum on a grid with its share of the noise; the server learns the sum over clients alone."""
    SUMS = "sums"
    """Its clipped sum as it is; the server adds up, adds noise and steps."""
    GRADIENTS = "gradients"
    """Its mean gradient with its own noise; the server averages and steps."""
    COPIES = "copies"
    """Its copy of what is shared, stepped with such gradients; the server averages the copies (FedAvg)."""


def payload_kind(local_steps: int, noise_at: Literal["auto", "server", "client", "shares"]) -> PayloadKind:
    """Return what the settings make clients send.

    >>> str(payload_kind(1, "server"))
    'sums'
    """
    if local_steps > 1:
        return PayloadKind.COPIES
    return {"client": PayloadKind.GRADIENTS, "shares": PayloadKind.SHARES}.get(noise_at, PayloadKind.SUMS)


def pack(upload: Upload) -> ClippedSum | None:
    """Turn a client's upload into what travels to a trusted server: the clipped sum itself, which the server sees."""
    return upload.shared_grad


def pack_private(upload: Upload, mechanism: Mechanism) -> Float[Tensor, "*p"] | None:
    """Turn a client's upload into its mean gradient with the client's own, full noise; None where nothing is shared.

    Args:
        upload: of one step.
        mechanism: of this client and step, allowed to release on GLOBAL.
    """
    return None if upload.shared_grad is None else mechanism.release(Channel.GLOBAL, upload.shared_grad).value


def pack_share(upload: Upload, mechanism: Mechanism, num_participants: int) -> Int64[np.ndarray, " l"] | None:
    """Turn a client's upload into whole numbers with its share of the noise; None where nothing is shared.

    Args:
        upload: of one step.
        mechanism: of this client and step, allowed to release on GLOBAL.
        num_participants: who was asked to take part in the step.
    """
    if upload.shared_grad is None:
        return None
    return mechanism.share(Channel.GLOBAL, upload.shared_grad, num_participants)


def add_shares(arrived: Sequence[Int64[np.ndarray, " l"]]) -> Int64[np.ndarray, " l"]:
    """Add vectors of whole numbers modulo 2^64: exact, in any order, with masks that cancel or without.

    >>> add_shares([np.array([2**63 - 1, 5]), np.array([1, -7])]).tolist()
    [-9223372036854775808, -2]
    """
    total = np.zeros_like(arrived[0], dtype=np.uint64)
    for vector in arrived:
        total += vector.view(np.uint64)
    return total.view(np.int64)


def shared_like(method: Method, shared: Shared) -> Tensor:
    """Return the tensor of the shared state that a sum is like: the first that clients need for a step."""
    tensors = flatten(getattr(shared, method.payload[0]))
    return next(iter(tensors.values()))


def unpack_sum(arrived: Sequence[ClippedSum | None]) -> ClippedSum | None:
    """Turn what arrived from all clients into the sum over clients; None where nothing arrived."""
    sums = [part for part in arrived if part is not None]
    return add_up(sums) if sums else None


def average(arrived: Sequence[Any], weights: Sequence[float], start: Any) -> Any:
    """Return `start` plus the weighted sum of the clients' moves from it, tensor by tensor.

    Source: McMahan et al. 2017 (arXiv:1602.05629), Algorithm 1, with the weights of the whole cohort: a client that
    failed counts as one that did not move, so the divisor stays public whoever showed up. Whole numbers are counts of
    steps and no matter of weights: all who arrived agree on them.

    Args:
        arrived: trees of the same tensors: copies of what is shared, or gradients.
        weights: one each; those of the whole cohort sum to 1.
        start: what the clients began with; zeros for gradients.
    """
    starts, moved = flatten(start), [flatten(state) for state in arrived]
    means = {}
    for name, tensor in starts.items():
        if not tensor.is_floating_point():
            means[name] = torch.stack([tensors[name] for tensors in moved]).amax(dim=0)
            continue
        total = tensor.double()
        for weight, tensors in zip(weights, moved, strict=True):
            total = total + weight * (tensors[name].double() - tensor.double())
        means[name] = total.to(tensor.dtype)
    return restore(start, means)


def average_gradients(arrived: Sequence[Float[Tensor, "*p"]], weights: Sequence[float]) -> Float[Tensor, "*p"]:
    """Return the weighted sum of gradients; a client that failed counts as a zero gradient."""
    mean: Tensor = average(arrived, weights, torch.zeros_like(arrived[0]))
    return mean


def num_bytes(sent: Any) -> int:
    """Count the bytes of a message's tensors."""
    if sent is None:
        return 0
    if isinstance(sent, np.ndarray):
        return sent.nbytes
    tensors = flatten(sent.value if isinstance(sent, ClippedSum) else sent)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def num_bytes_down(method: Method, shared: Shared, kind: PayloadKind) -> int:
    """Count the bytes of what one client needs of the shared state for an update."""
    if kind is PayloadKind.COPIES:
        return num_bytes(shared)
    return sum(num_bytes(getattr(shared, name)) for name in method.payload)
