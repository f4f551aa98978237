"""Encode the drawings of the embedded data set for the package: `python tools/embedded/encode.py`.

Whatever decides the features is in the key of their folder, so after a change of drawings, weights or preprocessing the
old ones are not served; this script takes them out and writes the new ones.
"""

from __future__ import annotations

import shutil

from hushprompt.data.sets.emoji100 import Emoji100
from hushprompt.features.cache import SHIPPED, FeaturesConfig, image_features
from hushprompt.features.store import LOCK
from hushprompt.models.embedded import EmojiClip


def main() -> None:
    """Write the folders of all splits."""
    shutil.rmtree(SHIPPED / "features", ignore_errors=True)
    backbone, dataset = EmojiClip().load(), Emoji100().load()
    for split in dataset.splits:
        image_features(backbone, dataset, split, SHIPPED, FeaturesConfig())
    for lock in SHIPPED.rglob(LOCK):
        lock.unlink()


if __name__ == "__main__":
    main()
