"""Flower's SuperNode, with a process on standby for its messages; both end with the process that started them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hushprompt.deployment.flower import clientapp, standby
from hushprompt.deployment.operate import process_lifetime


def main() -> None:
    """Run SuperNode; the arguments are those of `flower-supernode`."""
    process_lifetime.end_with_parent()
    if sys.platform == "linux":  # elsewhere a process with torch in it cannot safely fork
        folder = Path(os.environ["FLWR_HOME"]) / clientapp.COMMANDS
        subprocess.Popen([sys.executable, "-P", "-m", standby.__name__, str(folder)])
    from flwr.supernode.cli.flower_supernode import flower_supernode

    flower_supernode()


if __name__ == "__main__":
    main()
