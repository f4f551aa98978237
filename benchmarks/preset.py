"""`hushprompt run` on the embedded preset, as a user starts it: start-up, training, files."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.rows import Row

TITLE = "hushprompt run, the embedded preset"


def rows(*, is_short: bool) -> list[Row]:
    """Run as if just installed; a short run leaves it out."""
    name, target = "wall time, nothing cached", 60.0
    if is_short:
        return [Row(name=name, figure="amount", ours=None, target=target, note="left out of short runs")]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "hushprompt", "run", "--out", str(out)]
        environment = {**os.environ, "XDG_CACHE_HOME": f"{folder}/cache"}
        start = time.perf_counter()
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - start
        accuracy = harmonic_mean(out / "summary.json")
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return [
        Row(name=name, figure="amount", ours=wall, target=target, ours_mb=memory),
        Row(name="harmonic mean of DP-FPL's accuracies", figure="amount", unit="%", ours=accuracy),
    ]


def harmonic_mean(summary: Path) -> float:
    """Return what a run says of its method, in percent."""
    percent: float = 100 * json.loads(summary.read_text())["arms"][-1]["harmonic_mean"]
    return percent
