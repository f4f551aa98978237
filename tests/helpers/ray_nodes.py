"""Starts a Ray cluster of two nodes in a process of its own: python ray_nodes.py FOLDER FOLDER.

Each node works in its folder and has its cache there. Ray leaves files open, which would be errors in the tests' own
process. It prints the address, and ends with its input.
"""

import os
import sys

from ray.cluster_utils import Cluster

FEW_PROCESSES = {"num_cpus": 1, "include_dashboard": False, "include_log_monitor": False, "no_monitor": True}


def main(folders):
    cluster = Cluster()
    for folder in folders:
        os.chdir(folder)  # a node's workers begin where it was started
        cluster.add_node(env_vars={"XDG_CACHE_HOME": f"{folder}/cache"}, **FEW_PROCESSES)
    sys.stdout.write(f"{cluster.address}\n")
    sys.stdout.flush()
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
