"""A backbone's text tower alone: all that is needed where the features of the images are in the cache already.

A fingerprint covers all weights, so taking one reads both towers. It is kept beside the features, for the very files it
was taken from (place, size, inode and times of change) and for all settings and versions of packages that have a part
in it. While nothing of that changes, the image tower is read when an image is encoded and not before; then the
fingerprint is taken again, and must be the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from hushprompt import files
from hushprompt.errors import DataError
from hushprompt.features.cache import installed
from hushprompt.models.base import Backbone

LOG = logging.getLogger(__name__)
FOLDER = "fingerprints"
"""In the folder of the cache."""
SETTLED_NS = 2_000_000_000
"""A file that changed less than this long ago may change once more within one tick of its clock: nothing is kept."""


@runtime_checkable
class TextFirst(Protocol):
    """A backbone section that can leave the image tower where it is. Having the method declares it."""

    def load_text_first(self, cache_dir: Path) -> Backbone:
        """Read the model as `load` does; not its image tower, if the fingerprint of its files is known.

        Args:
            cache_dir: folder of the feature cache, where fingerprints are kept.
        """


def load_backbone(section: Any, cache_dir: Path) -> Backbone:
    """Read the model of a backbone section, without its image tower where that can wait."""
    backbone: Backbone = section.load_text_first(cache_dir) if isinstance(section, TextFirst) else section.load()
    return backbone


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a model without its image tower."""

    fingerprint: str
    num_patches: int | None
    """Patches that its image tower gives; None if it gives none."""


class KeptFingerprint:
    """The place where the fingerprint of some files is kept."""

    def __init__(self, cache_dir: Path, weights: Sequence[Path], settings: Any) -> None:
        """Look at the files, before they are read.

        Args:
            cache_dir: folder of the feature cache.
            weights: all files that weights are read from.
            settings: all else that decides the fingerprint, as JSON can say it.
        """
        places = sorted(str(path.resolve()) for path in weights)
        key = json.dumps([places, settings, installed()], sort_keys=True)
        self._path = cache_dir / FOLDER / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
        self._places = places
        self._began = time.time_ns()
        self._states = _states(places)

    def read(self) -> Known | None:
        """Return what is known of these files as they are; None if nothing is."""
        try:
            kept = json.loads(self._path.read_text(encoding="utf-8"))
            return Known(**kept["known"]) if self._states and kept["states"] == self._states else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def keep(self, known: Known) -> None:
        """Keep what was found out from the files, unless they have only just changed, or did since."""
        latest = max((time_ns for state in self._states for time_ns in state[2:]), default=self._began)
        if self._began - latest < SETTLED_NS or _states(self._places) != self._states:
            return
        try:
            files.write_text(self._path, json.dumps({"states": self._states, "known": asdict(known)}))
        except OSError as error:
            LOG.warning("the fingerprint could not be kept, so the next start reads all weights again: %s", error)


def check_unchanged(known: str, found: str) -> None:
    """Raise DataError if the weights that were read with the image tower are not those of the text tower."""
    if known != found:
        raise DataError("The weights of the backbone have changed since this process began. Start it again.")


def _states(places: Sequence[str]) -> list[list[int]]:
    """Return size, inode, and times of change of content and inode, of each file; nothing if one is gone."""
    try:
        stats = [Path(place).stat() for place in places]
    except OSError:
        return []
    return [[stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns] for stat in stats]
