"""A client's process on standby: it has done what takes seconds and is the same for every message, and forks for each.

Flower starts a process for every message. Started anew, it spends seconds on imports and on the privacy plan before it
looks at the message; forked from here it does not, and still is a process of its own, which ends with its message.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from hushprompt.deployment.flower.hand_over import SOCKET

Answer = Callable[[list[str]], int]
"""Answers one message; takes the arguments of `flwr-clientapp`, and returns an exit status."""


def stand_by(folder: Path, answer: Answer, prepare: Callable[[], None]) -> None:
    """Fork for each message that is handed over, one after the other, until this process is ended.

    Args:
        folder: where the socket is made, for this user alone.
        answer: called in the forked process.
        prepare: called in this one, first and after each message; it must leave no thread behind. Messages wait for it.
    """
    os.chdir(folder)  # a socket's path has at most 107 bytes, a folder's may have more
    Path(SOCKET).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as door:
        mask = os.umask(0o077)
        door.bind(SOCKET)
        os.umask(mask)
        door.listen()
        prepare()  # a message that comes earlier is answered sooner here than by a process that begins with it
        while True:
            visitor, _ = door.accept()
            with visitor:
                child = os.fork()
                if child == 0:
                    door.close()
                    _answer_and_end(visitor, answer)
            os.waitpid(child, 0)
            prepare()


def _answer_and_end(visitor: socket.socket, answer: Answer) -> None:
    """Answer in a forked process, tell how it went, and end it."""
    status = 1
    try:
        with visitor.makefile("rb") as file:
            arguments = json.load(file)
        status = answer(arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        visitor.sendall(str(status).encode())
        os._exit(status)


def main() -> None:
    """Stand by for a client's SuperNode; the one argument is the folder of its commands."""
    from hushprompt.deployment.flower import clientapp
    from hushprompt.deployment.operate import process_lifetime

    process_lifetime.end_with_parent()
    stand_by(Path(sys.argv[1]), clientapp.answer, clientapp.prepare)


if __name__ == "__main__":
    main()
