"""From what clients send to what the shared prompt is stepped with.

Two functions are all that lies between a client's clipped sum and the sum over clients: `pack` decides what travels,
`unpack_sum` what arrived. Masking and noise shares for a server that need not be trusted belong there.
"""

from __future__ import annotations

from hushprompt.methods.base import Upload
from hushprompt.privacy.clipping import ClippedSum, add_up


def pack(upload: Upload) -> ClippedSum | None:
    """Turn a client's upload into what travels: today the clipped sum itself, which the server sees."""
    return upload.shared_grad


def unpack_sum(arrived: list[ClippedSum | None]) -> ClippedSum | None:
    """Turn what arrived from all clients into the sum over clients; None where the method shares nothing."""
    sums = [part for part in arrived if part is not None]
    return add_up(sums) if sums else None


def num_bytes(sent: ClippedSum | None) -> int:
    """Count the bytes of a message's tensor."""
    return 0 if sent is None else sent.value.numel() * sent.value.element_size()
