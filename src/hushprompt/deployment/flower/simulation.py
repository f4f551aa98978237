"""A federation in Flower's simulation: the same two apps, all clients on this machine, in Ray's processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation

from hushprompt.deployment.flower import environment
from hushprompt.deployment.flower.client_app import client_app
from hushprompt.deployment.flower.server_app import main


def simulate(server: Path, clients: Sequence[Path]) -> None:
    """Run a federation from its config files, as separate machines would. Ray takes a while to start.

    Args:
        server: `server.toml`; its round_deadline_s must leave Ray that while.
        clients: a `client.toml` each.

    Raises:
        HushpromptError: what the server raises.
    """
    os.environ.update(environment.SAFE | {environment.SERVER_CONFIG: str(server.resolve())})
    paths = [path.resolve() for path in clients]

    def config_of(context: Context) -> Path:
        return paths[int(context.node_config["partition-id"])]

    server_app = ServerApp()
    server_app.main()(main)
    run_simulation(
        server_app,
        client_app(config_of),
        num_supernodes=len(paths),
        backend_config={
            "init_args": {"address": "local"},  # without it Ray joins any cluster that it finds, with the clients' data
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
