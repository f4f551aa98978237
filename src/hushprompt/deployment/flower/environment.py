"""What the processes of a Flower federation are started with: where their config is, and Flower's safe settings.

A process of Flower's gets nothing but its environment from whoever started it. Nothing of this can be set by a message.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from hushprompt.errors import ConfigError

SERVER_CONFIG = "HUSHPROMPT_SERVER_CONFIG"
"""Path of `server.toml`, where the SuperLink runs."""
CLIENT_CONFIG = "HUSHPROMPT_CLIENT_CONFIG"
"""Path of `client.toml`, where a SuperNode runs."""
NODE_NAMES = "HUSHPROMPT_NODE_NAMES"
"""Path of a JSON file with client names by node id, where the SuperLink runs: a client is who its key says it is."""
SAFE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    # SuperLink would fetch and install what a submitted app lists, for each run.
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray would hide the GPUs from clients that reserve none.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Nobody is told anything, and nothing is fetched."""
BUNDLE = Path(__file__).parent / "app"
"""What `flwr run` submits: names of the two apps of this package, which every machine has. No code is sent."""


def environment(home: Path, configs: Mapping[str, Path], base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a Flower process.

    Args:
        home: folder for Flower's own files (`FLWR_HOME`), one for each process that is kept running.
        configs: paths by the names above.
        base: what to begin with; None takes this process's.
    """
    own = dict(os.environ if base is None else base)
    # Flower starts its helpers by name: those of this very installation come first.
    path = os.pathsep.join(filter(None, [str(Path(sys.executable).parent), own.get("PATH", "")]))
    placed = {name: str(config.resolve()) for name, config in configs.items()}
    return own | SAFE | placed | {"FLWR_HOME": str(home.resolve()), "PATH": path}


def path_of(name: str) -> Path:
    """Return the path that this process was started with.

    Raises:
        ConfigError: there is none.
    """
    value = os.environ.get(name)
    if not value:
        raise ConfigError(f"{name} is not set: start this process with `hushprompt federation`, which sets it.")
    return Path(value)


def node_names() -> dict[str, str] | None:
    """Return client names by node id; None where the federation is not bound to keys.

    Raises:
        ConfigError: the file cannot be read.
    """
    if not os.environ.get(NODE_NAMES):
        return None
    path = path_of(NODE_NAMES)
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}). Start the server again: it writes this file.") from error
    return {str(node): str(name) for node, name in names.items()}
