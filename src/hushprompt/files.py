"""Files are written whole or not at all: to a temporary name, to the disk, then renamed; or grow by whole lines."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hushprompt.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def write_text(path: Path, text: str) -> None:
    """Write a text file; after a crash it is the old or the new one."""
    with _replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines, as they come, to a text file; after a crash it is the old or the new one."""
    with (
        _replacing(path) as temporary,
        temporary.open(
            "w",
            encoding="utf-8",
            newline="",
            errors="backslashreplace",  # names of files may be no text
        ) as file,
    ):
        file.writelines(lines)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a binary file; after a crash it is the old or the new one."""
    with _replacing(path) as temporary:
        temporary.write_bytes(content)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: str) -> None:
    """Write a safetensors file with one metadata entry, `hushprompt`.

    One entry, because safetensors writes several in random order and equal runs leave equal bytes.
    """
    from safetensors.torch import save_file  # torch takes a second to import, and most files are text

    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with _replacing(path) as temporary:
        save_file(owned, temporary, metadata={"hushprompt": metadata})


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz file, not compressed; after a crash it is the old or the new one."""
    import numpy as np  # most files are text

    with _replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def append_line(path: Path, text: str, most_bytes: int | None = None) -> int:
    """Append a line, on the disk when this returns, and give the file's new size in bytes.

    A file that would grow beyond `most_bytes` loses the older half of its lines first.
    """
    if most_bytes is not None and path.exists() and path.stat().st_size + len(text.encode()) >= most_bytes:
        lines = whole_lines_of(path)
        write_bytes(path, b"".join(line + b"\n" for line in lines[len(lines) // 2 + 1 :]))
    with path.open("a", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def whole_lines_of(path: Path) -> list[bytes]:
    """Read the whole lines of a file that another process may be writing, none if it is missing; it stays as it is."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1].splitlines()


def whole_lines(path: Path) -> list[bytes]:
    """Read the lines of a file that `append_line` writes, none if it is missing; a torn last line is cut off."""
    content = path.read_bytes() if path.exists() else b""
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) < len(content):
        os.truncate(path, len(complete))
    return complete.splitlines()


def own_folder(path: Path) -> None:
    """Make a folder that only its owner can look into (mode 0700), or see that an existing one is so.

    Raises:
        ConfigError: it is somebody else's, or others can look into it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.stat()
    if os.name == "posix" and found.st_uid != os.geteuid():
        raise ConfigError(f"The folder {path} belongs to another user. Use one of your own.")
    if os.name == "posix" and found.st_mode & 0o077:
        raise ConfigError(f"Others can look into {path}, which is for its owner alone. Run: chmod 700 {path}")


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Return a temporary path beside `path`, and move it there if the block succeeds, with the mode of the umask.

    A device or pipe, such as /dev/stdout, is written as it is: it must not be replaced by a file.

    Raises:
        OSError: a folder stands there, or the system refuses; it names `path`.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        with _named(path, path):
            yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    mode = os.fstat(handle).st_mode
    os.close(handle)
    try:
        with _named(path, temporary):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(mode)  # safetensors makes the file anew, with a mode of its own
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _named(path: Path, written: Path) -> Iterator[None]:
    """Have errors of writing a file name `path`: those of a full disk name none."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(written), written):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
