"""The process that Flower starts at a client for each message, running the package that is installed there.

Flower's own process runs whatever code the server sends: then no limit in `client.toml` would hold against a server
that is not what it should be. This one stands in for it, takes the message, and leaves the sent code unread. Where a
process is on standby, the message is handed over to it.
"""

from __future__ import annotations

import functools
import logging
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hushprompt.deployment.flower import environment, hand_over
from hushprompt.errors import HushpromptError

_LOG = logging.getLogger(__name__)
COMMANDS = "bin"
"""Folder in Flower's own for the commands of a client, and for its socket."""
REPLACED = "flwr-clientapp"
"""Command of Flower's that this stands in for."""
PULL_S = 300.0
"""Seconds in which a message must have come whole. A server that dies while it sends one leaves its process waiting,
for two hours by Flower's own limit, and all messages after it."""
PULL_AGAIN_S = (0.1, 2.0)
"""The first and the longest wait before the next look whether a part of it has come."""
REFUSED = ("flwr-serverapp", "flwr-agentapp", "flwr-connector", "flwr-model", "flwr-simulation")
"""Commands that a server could have a client start, and that no federation here needs."""


def install(folder: Path) -> None:
    """Write the commands into a folder that comes first on the PATH of a client's processes."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = {name: f"echo {name} is not run at a client >&2; exit 1" for name in REFUSED}
    python = shlex.quote(sys.executable)
    lines[REPLACED] = "\n".join(
        (
            f"cd {shlex.quote(str(folder.resolve()))} || exit 1",
            f'{python} -I -S {shlex.quote(hand_over.__file__)} "$@"',
            "status=$?",
            f"[ $status -eq {hand_over.NOBODY} ] || exit $status",
            f'exec {python} -P -m {__name__} "$@"',
        )
    )
    for name, line in lines.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        path.chmod(0o755)


def main() -> None:
    """Answer one message; the arguments are those of `flwr-clientapp`."""
    from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree as pull_whole
    from flwr.supernode.cli.flwr_clientapp import flwr_clientapp
    from flwr.supernode.runtime import run_clientapp

    first_s, most_s = PULL_AGAIN_S
    replaced = {"install_from_fab": _leave, "install_app_dependencies": _leave, "get_load_client_app_fn": _own}
    pull = functools.partial(pull_whole, max_time=PULL_S, initial_backoff=first_s, backoff_cap=most_s)
    for name, instead in {**replaced, "pull_and_inflate_object_from_tree": pull}.items():
        getattr(run_clientapp, name)  # a Flower that works in another way stops here, and not by running sent code
        setattr(run_clientapp, name, instead)
    flwr_clientapp()


def answer(arguments: list[str]) -> int:
    """Answer one message in a process that was forked for it."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    sys.argv = [REPLACED, *arguments]
    main()
    return 0


def prepare() -> None:
    """Load what every message needs: imports, and model, plan and features of the run that was last agreed on."""
    import torch
    from flwr.supernode.cli import flwr_clientapp  # noqa: F401
    from flwr.supernode.runtime import run_clientapp  # noqa: F401

    from hushprompt.deployment.flower import client_app

    torch.set_num_threads(1)  # a process whose threads have begun cannot be forked
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # looks for GPUs without using them
    if torch.cuda.is_available():
        return  # nor can one that has used a GPU: each message loads its model then
    try:
        client_app.client_node(environment.path_of(environment.CLIENT_CONFIG)).prepare()
    except (HushpromptError, OSError) as error:
        _LOG.warning("nothing could be prepared: %s", error)  # the message itself will say so


def _leave(*_: Any, **__: Any) -> None:
    """Install nothing that was sent."""


def _own(*_: Any, **__: Any) -> Callable[..., Any]:
    """Return what loads this package's app, whichever was sent."""

    def load(*_: Any) -> Any:
        from hushprompt.deployment.flower.client_app import app

        return app

    return load


if __name__ == "__main__":
    main()
