"""Downloads a known data set through torchvision, or says what to get from where."""

from __future__ import annotations

from pathlib import Path

from hushprompt.data.listing import About
from hushprompt.errors import ConfigError, DataError
from hushprompt.extras import install_hint


def fetch(about: About, root: Path) -> None:
    """Download a data set into its folder below `root`; what is there already is not downloaded again.

    Raises:
        ConfigError: torchvision is missing.
        DataError: torchvision has no download for it, or the download failed; the message says how to do it by hand.
    """
    if not about.torchvision:
        raise DataError(f"{about.title} cannot be downloaded automatically. Get it so:\n{by_hand(about)}")
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise ConfigError(
            f"Downloads need torchvision ({error}). Get it with: {install_hint('torchvision')}. Or by hand:\n"
            f"{by_hand(about)}"
        ) from error
    root.mkdir(parents=True, exist_ok=True)
    try:
        getattr(datasets, about.torchvision)(root=str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"The download of {about.title} failed ({error}). By hand:\n{by_hand(about)}") from error


def by_hand(about: About) -> str:
    """Say how to get a data set, and what its folder then looks like."""
    return f"{about.how_to_get}\nExpected below data/ (or any folder that data.root names):\n{about.layout}"
