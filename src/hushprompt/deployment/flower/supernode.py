"""Flower's SuperNode, with a process on standby for its messages; both end with the process that started them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hushprompt.deployment.flower import clientapp, pace, standby
from hushprompt.deployment.operate import process_lifetime

HEARTBEAT_S = 4
"""Seconds within which a client says that it is there. SuperLink takes it for lost after twice that; Flower's own
30 s would leave a run waiting for a minute."""
CALL_S = 1
"""Seconds of these that are kept for the call itself."""


def beat_often() -> None:
    """Set how often this process tells SuperLink that it is there."""
    from flwr.supercore import heartbeat
    from flwr.supernode import fleet_http_connection

    # Flower has no setting for it.
    vars(fleet_http_connection).update(HEARTBEAT_DEFAULT_INTERVAL=HEARTBEAT_S)
    vars(heartbeat).update(HEARTBEAT_DEFAULT_INTERVAL=HEARTBEAT_S, HEARTBEAT_CALL_TIMEOUT=CALL_S)


def look_often() -> None:
    """Set how often this process looks for messages."""
    from flwr.supernode import start_client_internal

    vars(start_client_internal).update(time=pace.Pace())


def main() -> None:
    """Run SuperNode; the arguments are those of `flower-supernode`."""
    process_lifetime.end_with_parent()
    if sys.platform == "linux":  # elsewhere a process with torch in it cannot safely fork
        folder = Path(os.environ["FLWR_HOME"]) / clientapp.COMMANDS
        subprocess.Popen([sys.executable, "-P", "-m", standby.__name__, str(folder)])
    from flwr.supernode.cli.flower_supernode import flower_supernode

    beat_often()
    look_often()
    flower_supernode()


if __name__ == "__main__":
    main()
