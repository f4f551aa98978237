"""Files are written whole or not at all: to a temporary name, to the disk, then renamed; or grow by whole lines."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def write_text(path: Path, text: str) -> None:
    """Write a text file; after a crash it is the old or the new one."""
    with _replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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


def append_line(path: Path, text: str) -> int:
    """Append a line, on the disk when this returns, and give the file's new size in bytes."""
    with path.open("a", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def whole_lines(path: Path) -> list[bytes]:
    """Read the lines of a file that `append_line` writes, none if it is missing; a torn last line is cut off."""
    content = path.read_bytes() if path.exists() else b""
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) < len(content):
        os.truncate(path, len(complete))
    return complete.splitlines()


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Return a temporary path beside `path`, and move it there if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
