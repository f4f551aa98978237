"""Private keys and tokens as files that only their owner can read."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from hushprompt.errors import ConfigError

OTHERS = stat.S_IRWXG | stat.S_IRWXO
"""What group and others may do with a file."""


def write_new(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read (mode 0600), to the disk; it never had another mode.

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
        file.flush()
        os.fsync(handle)


def read(path: Path, what: str = "private key") -> bytes:
    """Read a file that only its owner, who is the user of this process, can read.

    What is checked is the file that is read: it is opened once, and no link is followed to another.

    Raises:
        ConfigError: it is missing, a link or no file, another user's, or others can read or change it.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ConfigError(f"The {what} {path} is no file.")
            if found.st_uid != os.geteuid():
                raise ConfigError(f"The {what} {path} belongs to another user. Run: chown $USER {path}")
            if found.st_mode & OTHERS:
                raise ConfigError(f"The {what} {path} can be read by others. Run: chmod 600 {path}")
            return file.read()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ConfigError(f"The {what} {path} is a link. Name the file itself.") from error
        raise ConfigError(f"The {what} {path} cannot be read ({error.strerror}). Check the path.") from error
