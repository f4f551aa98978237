"""An envelope inside a Flower message: its bytes as they are, in one array.

Arrays are sent in pieces, so no request is too large for Flower's transport; a `ConfigRecord` would go as one.
"""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, Message, MessageType, RecordDict

from hushprompt.deployment.envelope import Envelope
from hushprompt.errors import ProtocolError

ENTRY = "envelope"
"""Name of the one record, and of the one array in it."""
FORM = "hushprompt.envelope"
"""Flower's `stype`: what the bytes of the array are."""


def request(envelope: Envelope, node: int, ttl_s: float) -> Message:
    """Return the message that brings an envelope to a node, and is worth nothing after `ttl_s` seconds."""
    return Message(_record(envelope), dst_node_id=node, message_type=MessageType.TRAIN, ttl=ttl_s)


def reply(envelope: Envelope, to: Message) -> Message:
    """Return the message that brings an envelope back."""
    return Message(_record(envelope), reply_to=to)


def read(message: Message, max_bytes: int) -> Envelope:
    """Take the envelope out of a message.

    Raises:
        ProtocolError: there is none, or something else beside it, or it cannot be read.
    """
    return Envelope.from_bytes(content_of(message), max_bytes)


def content_of(message: Message) -> bytes:
    """Take the bytes of an envelope out of a message; ProtocolError if it holds something else."""
    content = message.content
    if list(content) != [ENTRY] or not isinstance(record := content[ENTRY], ArrayRecord) or list(record) != [ENTRY]:
        raise ProtocolError("A Flower message holds something else than one envelope.")
    return record[ENTRY].data


def _record(envelope: Envelope) -> RecordDict:
    """Put the bytes of an envelope where Flower takes them."""
    data = envelope.to_bytes()
    return RecordDict({ENTRY: ArrayRecord({ENTRY: Array("uint8", (len(data),), FORM, data)})})
