"""Where a backbone's public metric is found."""

from __future__ import annotations

import os
from pathlib import Path

from hushprompt.errors import UnfitError
from hushprompt.models.base import Model
from hushprompt.statistics.metric import Metrics, fingerprint_of, read_metrics

SHIPPED = Path(__file__).parent.parent / "assets" / "emoji_clip_metric.safetensors"
"""The metric that comes with the package: of the embedded model."""


def metrics_of(backbone: Model, where: str = "auto") -> Metrics:
    """Return a backbone's metric.

    Args:
        backbone: whose image features it is about.
        where: a file; "auto": what the package or the cache has.

    Raises:
        UnfitError: there is none.
        DataError: the file is damaged, or belongs to another backbone.
    """
    encoder = encoder_of(backbone)
    if where != "auto":
        return read_metrics(Path(where).expanduser(), encoder)
    if fingerprint_of(SHIPPED) == encoder:
        return read_metrics(SHIPPED, encoder)
    if cached_path(encoder).exists():
        return read_metrics(cached_path(encoder), encoder)
    raise UnfitError(
        "Class statistics need a public metric of the backbone, and this one has none. Make it from any labeled public "
        "images, of 100 classes or more with two images or more each, by `hushprompt features metric`. Plain distances "
        "instead would lose about 5 points of accuracy, and fall below zero-shot with little budget."
    )


def encoder_of(backbone: Model) -> str:
    """Return the fingerprint of the model that makes the features: of another one, where features are given."""
    return str(getattr(backbone, "encoder", "")) or backbone.fingerprint


def metric_name(fingerprint: str) -> str:
    """Return the name of a metric's file.

    >>> metric_name("0123456789abcdef")
    'metric-0123456789ab.safetensors'
    """
    return f"metric-{fingerprint[:12]}.safetensors"


def cached_path(fingerprint: str) -> Path:
    """Return where `hushprompt features metric` puts a metric that is not told another place."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "hushprompt" / "metrics" / metric_name(fingerprint)
