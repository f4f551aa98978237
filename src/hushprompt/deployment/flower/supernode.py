"""Flower's SuperNode, which ends with the process that started it."""

from __future__ import annotations

from hushprompt.deployment.operate import tether


def main() -> None:
    """Run SuperNode; the arguments are those of `flower-supernode`."""
    tether.end_with_parent()
    from flwr.supernode.cli.flower_supernode import flower_supernode

    flower_supernode()


if __name__ == "__main__":
    main()
