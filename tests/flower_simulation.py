"""Runs a federation in Flower's simulation, in a process of its own: Ray stays out of the tests' process."""

import sys
from pathlib import Path

from hushprompt.deployment.flower.simulation import simulate

if __name__ == "__main__":
    server, *clients = map(Path, sys.argv[1:])
    simulate(server, clients)
