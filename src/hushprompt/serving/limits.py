"""What one request may ask of a server, and the answer to more."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hushprompt.errors import HushpromptError


@dataclass(frozen=True, kw_only=True)
class ServingLimits:
    """What a server takes; more is refused with a sentence."""

    body_bytes: int = 10 * 2**20
    """Largest body, counted while it comes in."""
    values: int = 40_000_000
    """Most pixels of an image, or samples of a sound, told by its header before it is decoded."""
    aspect_ratio: float = 50.0
    """Most that one side of an image is longer than the other: models resize the short one, and crop afterwards."""
    scanned_pixels: int = 200_000_000
    """Most pixels that all scans of a JPEG pass over together."""
    sound_seconds: float = 300.0
    """Longest sound."""
    images: int = 16
    """Most images, or sounds, in one request."""
    read_seconds: float = 10.0
    """Time for a request's head to arrive, and then for its body."""
    request_seconds: float = 30.0
    """Time from a request's head to its answer."""
    batch_size: int = 16
    """Most images that are encoded together."""
    batch_seconds: float = 0.010
    """Longest that an image waits, after an answer, for others to be encoded with."""
    queue: int = 32
    """Images that may wait; with more the answer is 503 at once."""
    question_chars: int = 500
    """Longest question that is to be answered in words."""
    answer_tokens: int = 64
    """Most tokens of an answer in words, each of which costs a pass through the model."""
    answer_seconds: float = 25.0
    """Time for an answer in words; what is not said by then is not computed either."""
    answer_queue: int = 8
    """Questions that may wait to be answered in words, one at a time; with more the answer is 503 at once."""
    connections: int = 100
    """Open connections; the next one is answered 503 and closed."""
    connections_of_one: int = 20
    """Open connections of one address that is not this machine's."""
    rate: float | None = None
    """Requests per second of one address; None: as many as come."""


class RefusedError(HushpromptError):
    """A request is not answered; its sender is told why."""

    def __init__(
        self, status: int, text: str, *, retry_after: float | None = None, headers: dict[str, str] | None = None
    ) -> None:
        """Take the HTTP status, the sentence, the seconds after which it may be tried again, and further headers."""
        super().__init__(text)
        self.status, self.headers = status, dict(headers or {})
        if retry_after is not None:
            self.headers["retry-after"] = str(max(1, math.ceil(retry_after)))
        if status == 401:
            self.headers["www-authenticate"] = "Bearer"
