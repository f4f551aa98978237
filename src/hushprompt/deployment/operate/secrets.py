"""Private keys as files that only their owner can read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hushprompt.errors import ConfigError

OTHERS = stat.S_IRWXG | stat.S_IRWXO
"""What group and others may do with a file."""


def write_new(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read (mode 0600); it never had another mode.

    Raises:
        ConfigError: the file exists.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise ConfigError(f"{path} exists. A key is never overwritten: move it away first.") from error
    with os.fdopen(handle, "wb") as file:
        os.fchmod(handle, 0o600)
        file.write(data)


def read(path: Path) -> bytes:
    """Read a file that only its owner can read.

    Raises:
        ConfigError: it is missing, or others can read or change it.
    """
    try:
        if path.stat().st_mode & OTHERS:
            raise ConfigError(f"The private key {path} can be read by others. Run: chmod 600 {path}")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"The private key {path} cannot be read ({error.strerror}). Check the path.") from error
