"""Messages between the server and a client, either way, as bytes with a checksum.

    magic (8 bytes) | SHA-256 of the rest (32 bytes) | safetensors: tensors, and kind and meta as JSON metadata

The checksum finds accidental damage. Who may send at all is a matter of the transport (TLS, keys). Whoever may send can
still send anything, so a message is read with bounds: on its length, on how deep its JSON goes, on numbers and types.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch
from safetensors.torch import load, save
from torch import Tensor

from hushprompt.errors import ProtocolError

PROTOCOL = 3
"""Version of the messages; both ends must have the same."""
MAGIC = b"hushmsg1"
ENTRY = "hushprompt"
"""Name of the one metadata entry."""
MAX_DEPTH = 8
"""Levels of lists and mappings in a message's JSON values."""
DTYPES = frozenset({"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"})
"""Types of tensors that are read, as safetensors calls them: what states of methods and updates consist of."""


@dataclass(frozen=True)
class _Header:
    """What of a message is JSON."""

    kind: str
    meta: dict[str, Any]


@dataclass(frozen=True)
class _TensorHeader:
    """What safetensors says of a tensor."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


@dataclass(frozen=True)
class Envelope:
    """One message: JSON values and tensors, nothing else ever."""

    kind: str
    """"join", "check", "plan", "turn", "unmask", "alone", "finish", or "refusal" with meta["reason"]."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """JSON values."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """The payload: shared state in a request, an update in an answer."""

    @property
    def is_refusal(self) -> bool:
        """Whether the other side did not do what it was asked."""
        return self.kind == "refusal"

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors alone, as `federation.payload.num_bytes` counts them."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def to_bytes(self) -> bytes:
        """Return the message as bytes; equal messages give equal bytes."""
        text = canonical({"kind": self.kind, "meta": self.meta}).decode()
        owned = {name: self.tensors[name].detach().cpu().contiguous().clone() for name in sorted(self.tensors)}
        body = save(owned, metadata={ENTRY: text})
        return MAGIC + hashlib.sha256(body).digest() + body

    @property
    def digest(self) -> str:
        """`fingerprint` in hex."""
        return fingerprint(self).hex()

    @classmethod
    def from_bytes(cls, data: bytes, max_bytes: int) -> Envelope:
        """Read a message.

        Args:
            data: what arrived.
            max_bytes: more is not even looked at.

        Raises:
            ProtocolError: too large, damaged, no message at all, or with a number that is not finite.
        """
        if len(data) > max_bytes:
            raise ProtocolError(f"A message has {len(data)} bytes; at most {max_bytes} are read.")
        start = len(MAGIC) + hashlib.sha256().digest_size
        if data[: len(MAGIC)] != MAGIC:
            raise ProtocolError("What arrived is no message of a federation, or one of another version.")
        body = data[start:]
        if hashlib.sha256(body).digest() != data[len(MAGIC) : start]:
            raise ProtocolError("A message was damaged on its way: its checksum does not fit.")
        try:
            return cls(*_read(body))
        except ProtocolError:
            raise
        except Exception as error:  # whatever a reader raises for bytes that a stranger chose
            raise ProtocolError(f"A message cannot be read ({type(error).__name__}).") from error


def fingerprint(message: Envelope) -> bytes:
    """Return the SHA-256 of kind, meta and tensors: the name of exactly this message, whoever wrote it into bytes.

    It depends on no library's layout: not on the order of keys and tensors, nor on how safetensors writes a file. The
    masks of secure aggregation are bound to it.
    """
    digest = hashlib.sha256(b"hushprompt message 1\0" + canonical({"kind": message.kind, "meta": message.meta}))
    for name, tensor in sorted(message.tensors.items()):
        content = hashlib.sha256(_little_endian(tensor)).hexdigest()
        digest.update(canonical([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), content]))
    return digest.digest()


def _little_endian(tensor: Tensor) -> bytes:
    """Return a tensor's numbers as bytes, lowest first, whatever the machine."""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return (raw if sys.byteorder == "little" else raw.reshape(-1, tensor.element_size())[:, ::-1]).tobytes()


def canonical(value: Any) -> bytes:
    """Return JSON values as the bytes that every site gets for them: keys sorted, no spaces, UTF-8.

    >>> canonical({"b": 1, "a": ["x", 0.5]})
    b'{"a":["x",0.5],"b":1}'

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _read(body: bytes) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Return kind, meta and tensors of a message; any exception says that it is none."""
    size = int.from_bytes(body[:8], "little")
    parts: dict[str, msgspec.Raw] = msgspec.json.decode(body[8 : 8 + size], type=dict[str, msgspec.Raw])
    entries = msgspec.json.decode(parts.pop("__metadata__"), type=dict[str, str])
    for name, part in parts.items():
        if (dtype := msgspec.json.decode(part, type=_TensorHeader).dtype) not in DTYPES:
            raise ProtocolError(f"The tensor {name!r} of a message is of the type {dtype!r}, which is not read.")
    header = msgspec.json.decode(entries[ENTRY], type=_Header)  # refuses NaN, which JSON does not have
    _check_values(header.meta, MAX_DEPTH)
    tensors = load(body)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ProtocolError(f"The tensor {name!r} of a message has values that are NaN or infinite.")
    return header.kind, header.meta, dict(sorted(tensors.items()))


def _check_values(value: Any, depth: int) -> None:
    """Raise ProtocolError for JSON values that are nested too deeply, or numbers that no field is made for."""
    if isinstance(value, dict | list):
        if depth == 0:
            raise ProtocolError(f"A message's values are nested more than {MAX_DEPTH} levels deep.")
        for entry in value.values() if isinstance(value, dict) else value:
            _check_values(entry, depth - 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ProtocolError("A message has a number that is not finite.")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise ProtocolError("A message has a whole number of more than 64 bits.")


def refusal(reason: str) -> Envelope:
    """Return the answer of one who does not do what was asked."""
    return Envelope("refusal", {"reason": reason})
