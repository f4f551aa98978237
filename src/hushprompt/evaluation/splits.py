"""Evaluation images of a client: its own (local), and those of all other clients (neighbor).

With disjoint classes, local images are those of the client's own classes and neighbor images those of all other
classes. Where classes overlap, neighbor means the other clients' images, some of them of classes the client knows.
Scores are over the label space that clients train on: all classes, or the base classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hushprompt.data.partitions.base import Partition


@dataclass(frozen=True)
class ClientSplit:
    """Indices into one evaluation split."""

    client_id: int
    local: np.ndarray
    """[n] the client's own images."""
    everyone: np.ndarray
    """[m] the images of all clients, sorted: one array that all clients' splits share."""

    @property
    def neighbor(self) -> np.ndarray:
        """[m - n] the images of all other clients; made anew at each call, as all clients' would not fit in memory."""
        return np.setdiff1d(self.everyone, self.local, assume_unique=True)


def client_splits(partition: Partition, split: str) -> tuple[ClientSplit, ...]:
    """Return every client's local and neighbor images of `split`, "test" or "validation"."""
    own = [client.indices[split] for client in partition.clients]
    everyone = np.sort(np.concatenate(own))
    return tuple(
        ClientSplit(client.client_id, mine, everyone) for client, mine in zip(partition.clients, own, strict=True)
    )
