"""From what is shared to what goes down, and from a client's message to what comes up; both are checked on arrival.

What a message is, is decided in `federation/payload.py`: here it only gets names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hushprompt.errors import ProtocolError
from hushprompt.federation.payload import PayloadKind, payload_kind
from hushprompt.methods.base import Shared
from hushprompt.privacy.adaptive import ClipNorms
from hushprompt.privacy.clipping import ClippedSum
from hushprompt.privacy.config import Channel
from hushprompt.runs.arm import Arm
from hushprompt.runs.state import flatten, restore

SERVER_ONLY = ("optimizer", "anchor")
"""Parts of a shared state that `server_step` alone reads: they go down only where clients step copies of their own."""
HEADER_BYTES = 2**16
"""More than all that stands around the tensors of an answer."""


def payload_kind_of(arm: Arm, local_steps: int) -> PayloadKind:
    """Return what the clients of an arm send."""
    return payload_kind(local_steps, arm.plan.config.noise_at)


def down(shared: Shared, travels: PayloadKind) -> dict[str, Tensor]:
    """Return what of the shared state clients need for a turn, by name."""
    tensors = flatten(shared)
    if travels is PayloadKind.COPIES:
        return tensors
    return {name: tensor for name, tensor in tensors.items() if name.partition(".")[0] not in SERVER_ONLY}


def from_down(template: Shared, tensors: Mapping[str, Tensor], travels: PayloadKind) -> Shared:
    """Return the shared state that came down; what does not come down is the template's, and nobody reads it.

    Raises:
        ProtocolError: other tensors, shapes or types than the method's.
    """
    check_like(tensors, down(template, travels), "What came down")
    return restore(template, {**flatten(template), **tensors})


def up(message: Any) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return a client's message as tensors, and the count that adaptive clip norms need; nothing where nothing travels.

    Whoever masks what travels does it in `aggregate.pack`.
    """
    if message is None:
        return {}, {}
    if isinstance(message, ClippedSum):
        return {"sum": message.value}, {"centered_count": message.centered_count}
    return ({"gradient": message} if isinstance(message, Tensor) else flatten(message)), {}


def expected_up(arm: Arm, shared: Shared, travels: PayloadKind) -> dict[str, Tensor]:
    """Return tensors of the names, shapes and types that a client's message must have."""
    if travels is PayloadKind.COPIES:
        return flatten(shared)
    (like,) = down(shared, travels).values()
    if arm.plan.release_plan.batch_clipping is not None:
        like = like.flatten()  # blocks of a clipped batch are one vector
    if travels is PayloadKind.GRADIENTS:
        return {"gradient": like}
    return {"sum": like.double() if arm.plan.config.noise_source == "secure" else like}


def from_up(
    arm: Arm,
    shared: Shared,
    norms: ClipNorms | None,
    size: int,
    travels: PayloadKind,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
) -> Any:
    """Return the message that came up from a client with `size` training examples.

    Raises:
        ProtocolError: it is not what the method's clients send.
    """
    check_like(tensors, expected_up(arm, shared, travels), "An update")
    if travels is PayloadKind.COPIES:
        return restore(shared, tensors)
    (value,) = tensors.values()
    value = value.to(next(iter(down(shared, travels).values())).device)
    if travels is PayloadKind.GRADIENTS:
        return value
    count = 0.0
    if norms is not None:
        count = meta.get("centered_count", math.nan)
        if type(count) is not float or not abs(count) <= size / 2:
            raise ProtocolError(f"An update counts {count} contributions of at most {size}, each by a half.")
    clip_norm = None if norms is None else norms.of(0)["global"]
    return ClippedSum(
        value, arm.plan.release_plan.sensitivity(Channel.GLOBAL) if clip_norm is None else clip_norm, count
    )


def check_like(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Raise ProtocolError unless names, shapes and types agree, and all numbers are finite."""
    if set(tensors) != set(expected):
        raise ProtocolError(f"{what} has the tensors {sorted(tensors)}, expected {sorted(expected)}.")
    for name, tensor in tensors.items():
        like = expected[name]
        if tensor.shape != like.shape or tensor.dtype != like.dtype:
            raise ProtocolError(
                f"{what}: {name} is {tensor.dtype} {list(tensor.shape)}, expected {like.dtype} {list(like.shape)}."
            )
        if not torch.isfinite(tensor).all():
            raise ProtocolError(f"{what}: {name} has values that are NaN or infinite.")
