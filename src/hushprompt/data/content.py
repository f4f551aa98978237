"""What the examples of a split are, by their bytes: equal bytes give equal digests, whatever their dates and paths.

Up to `MAX_READ` examples are read, side by side; of more, as many are read, evenly spread, and of the others the size
counts. A file above `WHOLE` bytes is known by its size and by its start, middle and end.
"""

from __future__ import annotations

import functools
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from hushprompt.data.base import Split
from hushprompt.data.listing import WHOLE, Decoded, Sized, sample

MAX_READ = 10_000
"""Examples of a split that are read."""


@dataclass(frozen=True)
class Content:
    """What a split holds."""

    digest: str
    """SHA-256 of labels, holders and bytes, in the split's order."""
    is_whole: bool
    """Whether every byte counts; if not, two splits of one digest may still differ in bytes that were not read."""


def content_of(split: Split, index: np.ndarray | None = None) -> Content:
    """Read what a split holds.

    Args:
        split: its own fingerprint is the content of examples that do not come from a list of files.
        index: of the examples that count [m]; None: all.

    Raises:
        DataError: an example is not there.
    """
    index = np.arange(len(split)) if index is None else index
    digest = hashlib.sha256()
    for values in (split.labels, split.domains, split.clients):
        digest.update(b"-" if values is None else values[index].astype("<i8").tobytes())
    if split.questions is not None and split.answers is not None:
        texts = [(split.questions[at], split.answers[at]) for at in index.tolist()]
        digest.update(repr(texts).encode(errors="surrogateescape"))
    if not isinstance(split.read, Decoded):
        digest.update(split.fingerprint.encode() + index.astype("<i8").tobytes())
        return Content(digest.hexdigest(), is_whole=True)
    rows, source = split.read.rows[index].tolist(), split.read.source
    digest.update(repr(split.read.media).encode())
    sizes = [source.size(row) for row in rows] if isinstance(source, Sized) else [0] * len(rows)
    digest.update(np.array(sizes, dtype="<i8").tobytes())
    chosen = sorted({int(at) for at in np.linspace(0, len(rows) - 1, min(len(rows), MAX_READ))})
    read = functools.partial(sample, source) if isinstance(source, Sized) else source.fetch
    with ThreadPoolExecutor(16) as pool:
        for seen in pool.map(lambda at: hashlib.sha256(read(rows[at])).digest(), chosen):
            digest.update(seen)
    return Content(digest.hexdigest(), len(chosen) == len(rows) and max(sizes, default=0) <= WHOLE)
