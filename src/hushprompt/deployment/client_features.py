"""Features that a client encodes for a server's plans: so large as its owner allows, and no more than the last ones.

Each plan may have other `features` settings, and with them a cache of its own: whoever proposes plans could fill the
disk. What is refused follows from the plan and the model alone, so a refusal says nothing of the data.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from hushprompt.deployment.config import CACHE, OwnerConfig
from hushprompt.errors import ProtocolError
from hushprompt.features.store import FeatureFolder, key_of
from hushprompt.runs import records

MADE = "made.json"
"""Names in a store's cache folder those that were encoded for plans, wherever they lie, the latest last."""
MOST_KEPT = 8
"""Of them; a plan has two, of training images and of those that are scored."""


def check_size(owner: OwnerConfig, folders: Sequence[FeatureFolder]) -> None:
    """Raise ProtocolError where more would be kept of an image than the owner allows."""
    largest = max(folder.key.bytes_per_example for folder in folders) / 1024
    if largest > owner.max_image_kb:
        raise ProtocolError(
            f"Features of one image would take {largest:,.0f} KB on this client's disk, and its owner allows "
            f"{owner.max_image_kb:,g} (owner.max_image_kb in client.toml; features.num_views of the run decides, too)."
        )


def make_room(store: Path, folders: Sequence[FeatureFolder]) -> None:
    """Write down which folders a plan is about to make, and remove the oldest that earlier plans made.

    A folder that was whole before any plan asked for it, as of the owner's own runs, stays.
    """
    listed, wanted = store / CACHE / MADE, [folder.path.absolute() for folder in folders]
    known = [Path(path) for path in records.read_json(listed)] if listed.exists() else []
    made = [path for path in known if path not in wanted]
    made += [path for path, folder in zip(wanted, folders, strict=True) if path in known or not folder.is_marked()]
    if made != known:
        for path in made[:-MOST_KEPT]:
            if key_of(path) is not None:
                shutil.rmtree(path, ignore_errors=True)
        records.write_json(listed, [str(path) for path in made[-MOST_KEPT:]])
