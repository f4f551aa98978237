"""Installed packages: their versions, and how to get one that is missing (an extra)."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

from hushprompt.errors import ConfigError


@functools.cache
def version_of(package: str) -> str:
    """Return the version of an installed package; its files are read once in a process.

    Raises:
        importlib.metadata.PackageNotFoundError: it is not installed.
    """
    return importlib.metadata.version(package)


def install_hint(extra: str) -> str:
    """Return the command that installs an extra: from the checkout, where this package came from one."""
    return f"pip install '.[{extra}]' (in the checkout)" if _is_checkout() else f"pip install 'hushprompt[{extra}]'"


def require(extra: str, what: str, *packages: str) -> None:
    """Raise ConfigError unless packages of an extra are installed; imports none of them."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"{what} needs the package {package}. Get it with: {install_hint(extra)}.")


def load(module: str, extra: str, what: str) -> Any:
    """Import a module of an extra, for `what` needs it.

    Raises:
        ConfigError: it is missing, or cannot be imported beside what is installed.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # without its library; built for another torch
        found = f"{what} needs the package {module}, which cannot be imported ({error})."
        raise ConfigError(f"{found} Get it with: {install_hint(extra)}.") from error


def _is_checkout() -> bool:
    """Whether this package was installed from a checkout (PEP 610), or runs from one that is not installed."""
    try:
        return '"dir_info"' in (importlib.metadata.distribution("hushprompt").read_text("direct_url.json") or "")
    except importlib.metadata.PackageNotFoundError:
        return (Path(__file__).parents[2] / "pyproject.toml").exists()
