"""Which tensors a request and an update consist of, by name; both are checked when they arrive.

A request carries the fields of the shared state that the method's `payload` names. What an update is, is decided in
`federation/payload.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from hushprompt.deployment import rescue
from hushprompt.deployment.agreement import Agreement, read_agreement
from hushprompt.deployment.envelope import Envelope
from hushprompt.deployment.masks import SEED
from hushprompt.errors import ConfigError, ProtocolError
from hushprompt.federation.payload import PayloadKind, payload_kind, shared_like
from hushprompt.methods.base import Method, Shared
from hushprompt.privacy.adaptive import ClipNorms
from hushprompt.privacy.clipping import ClippedSum
from hushprompt.privacy.config import Channel
from hushprompt.runs.arm import Arm
from hushprompt.runs.state import flatten, restore

DECLARED = {
    "join": {"protocol", "package", "client", "num_examples", "backbone", "key", "signature"},
    "check": {"agreement"},
    "plan": {"agreement"},
    "turn": {"client", "agreement", "round", "step"},
    "unmask": {"client", "agreement", "round", "step", "context"},
    "alone": {"client", "agreement", "until"},
    "finish": {"client", "agreement", "rounds"},
    "refusal": {"reason"},
}
"""Fields of each answer: all of them public, so that neither their text nor its length tells of the data. Whatever
depends on the data is a tensor of a size that the agreement fixes."""
MASKED = "masked"
"""Name of the tensor of a turn's answer that is hidden under masks; such an answer has the field `context` too."""


def payload_kind_of(arm: Arm, local_steps: int) -> PayloadKind:
    """Return what the clients of an arm send."""
    return payload_kind(local_steps, arm.plan.config.noise_at)


def request_tensors(method: Method, shared: Shared, kind: PayloadKind) -> dict[str, Tensor]:
    """Return the tensors of the shared state that clients need for an update, by name.

    Raises:
        ConfigError: the method's `payload` names a field that the shared state does not have.
    """
    tensors = flatten(shared)
    if kind is PayloadKind.COPIES:
        return tensors
    fields = {name.partition(".")[0] for name in tensors}
    if unknown := set(method.payload) - fields:
        raise ConfigError(
            f"{type(method).__name__}.payload names {', '.join(sorted(unknown))}, which the shared state of the method "
            f"does not have. It has: {', '.join(sorted(fields)) or 'no tensors'}."
        )
    # In the order of `payload`: the first tensor is what a gradient is of.
    return {
        name: tensor for field in method.payload for name, tensor in tensors.items() if name.partition(".")[0] == field
    }


def read_shared(method: Method, start: Shared, tensors: Mapping[str, Tensor], kind: PayloadKind) -> Shared:
    """Return the shared state that a request carries; fields that are not sent are those of `start`.

    Raises:
        ProtocolError: other tensors, shapes or types than the method's.
    """
    check_like(tensors, request_tensors(method, start, kind), "A request")
    return restore(start, {**flatten(start), **tensors})


LATE = ("clients", "sizes", "client_classes")
"""What is said of clients that joined late, to those who agreed on a plan before."""


def late_fields(agreement: Agreement) -> dict[str, Any]:
    """Return what is public of an agreement's late clients."""
    values = agreement.to_json()
    return {name: list(values[name][-agreement.num_late :]) for name in LATE if name in values}


def read_late(own: Agreement, late: Any) -> Agreement:
    """Return an agreement with the late clients that a message names; None: nobody.

    Raises:
        ProtocolError: they are no clients that could have joined.
    """
    if late is None:
        return own.first
    values = own.first.to_json()
    if not isinstance(late, Mapping) or not {*late} <= {*LATE} or not all(type(each) is list for each in late.values()):
        raise ProtocolError("A message names late clients in a way that this version does not read.")
    if "client_classes" in late:
        values.setdefault("client_classes", [None] * len(own.first.clients))
    more = {name: [*values[name], *late.get(name, ())] for name in LATE if name in values}
    return read_agreement({**values, **more, "num_late": len(late.get("clients", ()))})


def check_declared(answer: Envelope) -> Envelope:
    """Return an answer that has exactly the fields of its kind; ProtocolError for one that has others."""
    declared = DECLARED.get(answer.kind)
    if declared and MASKED in answer.tensors:
        declared = declared | {"context"}
    if set(answer.meta) != declared:
        raise ProtocolError(f"An answer has the fields {sorted(answer.meta)}, which are not those of {answer.kind!r}.")
    return answer


def update_tensors(message: Any, *, counts: bool) -> dict[str, Tensor]:
    """Return a client's message as tensors; with `counts` also the count that adaptive clip norms need.

    Noise shares are no such message: they leave under masks alone (`secure_turn.py`).
    """
    if message is None:
        return {}
    if isinstance(message, ClippedSum):
        count = {"count": torch.tensor(message.centered_count, dtype=torch.float64)} if counts else {}
        return {"sum": message.value, **count}
    return {"gradient": message} if isinstance(message, Tensor) else flatten(message)


def expected_update(arm: Arm, shared: Shared, kind: PayloadKind, *, counts: bool) -> dict[str, Tensor]:
    """Return tensors of the names, shapes and types that a client's message must have."""
    if kind is PayloadKind.COPIES:
        return flatten(shared)
    like = next(iter(request_tensors(arm.method, shared, kind).values()))
    if arm.plan.release_plan.batch_clipping is not None:
        like = like.flatten()  # blocks of a clipped batch are one vector
    if kind is PayloadKind.GRADIENTS:
        return {"gradient": like}
    count = {"count": torch.zeros((), dtype=torch.float64)} if counts else {}
    return {"sum": like.double() if arm.plan.release_plan.noise_source == "secure" else like, **count}


def read_update(
    arm: Arm,
    shared: Shared,
    norms: ClipNorms | None,
    size: int,
    step: int,
    kind: PayloadKind,
    tensors: Mapping[str, Tensor],
) -> Any:
    """Return the message of a client with `size` training examples in a step of a round.

    Raises:
        ProtocolError: it is not what the method's clients send.
    """
    check_like(tensors, expected_update(arm, shared, kind, counts=norms is not None), "An update")
    if kind is PayloadKind.COPIES:
        return restore(shared, tensors)
    value = tensors["gradient" if kind is PayloadKind.GRADIENTS else "sum"]
    value = value.to(next(iter(flatten(shared).values())).device)
    if kind is PayloadKind.GRADIENTS:
        return value
    count = float(tensors["count"]) if norms is not None else 0.0
    if abs(count) > size / 2:
        raise ProtocolError(f"An update counts {count} contributions of at most {size}, each by a half.")
    clip_norm = None if norms is None else norms.of(0)["global"]
    bound = arm.plan.release_plan.exact_sensitivity(Channel.GLOBAL, clip_norm, step)
    return ClippedSum(value, bound, count)


def read_masked(
    arm: Arm, shared: Shared, tensors: Mapping[str, Tensor], num_participants: int, *, counts: bool
) -> Int64[np.ndarray, " l"]:
    """Return a client's masked vector under secure aggregation: the entries of a sum, and the count of adaptive norms.

    Raises:
        ProtocolError: it is not what the plan's clients send.
    """
    expected = {MASKED: torch.empty(shared_like(arm.method, shared).numel() + counts, dtype=torch.int64)}
    if arm.plan.config.rescue:
        width = rescue.box_size(num_participants)
        expected["sealed"] = torch.empty(num_participants, width, dtype=torch.uint8)
    check_like(tensors, expected, "An update")
    return tensors[MASKED].numpy()


def expected_unmask(num_participants: int, num_answered: int) -> dict[str, Tensor]:
    """Return a tensor of the name, shape and type with which a client unmasks a sum: shares of seeds by client."""
    seeds = 1 + num_participants - num_answered
    return {"shares": torch.empty(num_answered, seeds, SEED, dtype=torch.uint8)}


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
