"""hushprompt: private, personal, federated prompt learning of frozen vision-language models."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from hushprompt.errors import (
    ConfigError,
    DataError,
    HushpromptError,
    LinkError,
    PrivacyError,
    ProtocolError,
    ResumeError,
)

__all__ = [
    "ConfigError",
    "DataError",
    "HushpromptError",
    "LinkError",
    "PrivacyError",
    "ProtocolError",
    "ResumeError",
    "load_registries",
]


@functools.cache
def load_registries() -> None:
    """Import every file of the rooms that register something, so that the registries are complete."""
    for room in ("data.sets", "data.partitions", "data.readers", "models", "features", "privacy", "methods", "config"):
        package = importlib.import_module(f"hushprompt.{room}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"hushprompt.{room}.{module.name}")
