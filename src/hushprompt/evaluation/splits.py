"""Whose images a client is scored on: its own, and everybody else's.

With disjoint classes, local images are those of the client's own classes and neighbor images those of all other
classes. Where classes overlap, neighbor means the other clients' images, some of them of classes the client knows.
Scores are always over the full label space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hushprompt.data.partition import Partition


@dataclass(frozen=True)
class ClientSplit:
    """Indices into one evaluation split."""

    client_id: int
    local: np.ndarray
    """[n] the client's own images."""
    neighbor: np.ndarray
    """[m] the images of all other clients."""


def client_splits(partition: Partition, split: str) -> tuple[ClientSplit, ...]:
    """Give every client's local and neighbor images of `split`, "test" or "validation"."""
    own = [client.indices[split] for client in partition.clients]
    everyone = np.sort(np.concatenate(own))
    return tuple(
        ClientSplit(client.client_id, mine, np.setdiff1d(everyone, mine, assume_unique=True))
        for client, mine in zip(partition.clients, own, strict=True)
    )
