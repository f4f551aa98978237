"""Messages between the server and a client, either way, as bytes with a checksum.

    magic (8 bytes) | SHA-256 of the rest (32 bytes) | safetensors: tensors, and kind and meta as JSON metadata

The checksum finds accidental damage. Who may send at all is a matter of the transport (TLS, keys).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from hushprompt.errors import ProtocolError

PROTOCOL = 1
"""Version of the messages; both ends must have the same."""
MAGIC = b"hushmsg1"
ENTRY = "hushprompt"
"""Name of the one metadata entry."""


@dataclass(frozen=True)
class _Header:
    """What of a message is JSON."""

    kind: str
    meta: dict[str, Any]


@dataclass(frozen=True)
class Envelope:
    """One message: JSON values and tensors, nothing else ever."""

    kind: str
    """"join", "plan", "turn", "alone", "finish", or "refusal" with meta["reason"]."""
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
        text = json.dumps({"kind": self.kind, "meta": self.meta}, sort_keys=True, allow_nan=False)
        owned = {name: self.tensors[name].detach().cpu().contiguous().clone() for name in sorted(self.tensors)}
        body = save(owned, metadata={ENTRY: text})
        return MAGIC + hashlib.sha256(body).digest() + body

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes, in hex: the name of exactly this message."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

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
            size = int.from_bytes(body[:8], "little")
            text = json.loads(body[8 : 8 + size])["__metadata__"][ENTRY]
            header = msgspec.json.decode(text, type=_Header)  # refuses NaN and infinity, which JSON does not have
            tensors = load(body)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ProtocolError(f"A message cannot be read ({error}).") from error
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise ProtocolError(f"The tensor {name!r} of a message has values that are NaN or infinite.")
        return cls(header.kind, header.meta, dict(sorted(tensors.items())))


def refusal(reason: str) -> Envelope:
    """Return the answer of one who does not do what was asked."""
    return Envelope("refusal", {"reason": reason})
