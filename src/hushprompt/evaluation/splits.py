"""Evaluation images of a client: its own (local), and those of all other clients (neighbor).

With disjoint classes, local images are those of the client's own classes and neighbor images those of all other
classes. Where classes overlap, neighbor means the other clients' images, some of them of classes the client knows.
Scores are over the label space that clients train on: all classes, or the base classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from hushprompt.data.groups import in_order
from hushprompt.data.partitions.base import Partition

FINEST = 2**20
"""A group's share of right answers is rounded down to whole parts of one over this: sums are exact in float64."""


@dataclass(frozen=True)
class GroupedImages:
    """Groups of evaluation images, each of one client, where groups are the privacy unit."""

    numbers: Int64[np.ndarray, " n"]
    """Number of each image's group, from 0; -1 of an image that no client holds."""
    holders: Int64[np.ndarray, " g"]
    """Client of each group."""

    def shares(self, is_right: Bool[np.ndarray, " n"]) -> Float64[np.ndarray, " g"]:
        """Return the share of each group's images that are right, in [0, 1]: a group counts as one image does."""
        held, num_groups = self.numbers >= 0, len(self.holders)
        sizes = np.bincount(self.numbers[held], minlength=num_groups)
        right = np.bincount(self.numbers[held], weights=is_right[held], minlength=num_groups)
        shares: Float64[np.ndarray, " g"] = np.floor(FINEST * right / sizes) / FINEST
        return shares


@dataclass(frozen=True)
class ClientSplit:
    """Indices into one evaluation split."""

    client_id: int
    local: np.ndarray
    """[n] the client's own images."""
    everyone: np.ndarray
    """[m] the images of all clients, sorted: one array that all clients' splits share."""
    groups: GroupedImages | None = None
    """Of all clients, where they are the privacy unit: what counts of right answers then count."""

    @property
    def num_local(self) -> int:
        """The client's own images, or groups of them."""
        return len(self.local) if self.groups is None else int((self.groups.holders == self.client_id).sum())

    @property
    def num_everyone(self) -> int:
        """All clients' images, or groups of them."""
        return len(self.everyone) if self.groups is None else len(self.groups.holders)

    def count(self, is_right: Bool[np.ndarray, " n"]) -> tuple[float, float]:
        """Return how many of the client's own images, and of all clients', are right, or the sums of groups' shares."""
        if self.groups is None:
            return int(is_right[self.local].sum()), int(is_right[self.everyone].sum())
        shares = self.groups.shares(is_right)
        return float(shares[self.groups.holders == self.client_id].sum()), float(shares.sum())

    @property
    def neighbor(self) -> np.ndarray:
        """[m - n] the images of all other clients; made anew at each call, as all clients' would not fit in memory."""
        return np.setdiff1d(self.everyone, self.local, assume_unique=True)


def client_splits(partition: Partition, split: str, groups: np.ndarray | None = None) -> tuple[ClientSplit, ...]:
    """Return every client's local and neighbor images of `split`, "test" or "validation".

    Args:
        partition: who holds what.
        split: name of the split.
        groups: [n] group of each of its images, where groups are the privacy unit.
    """
    own = [client.indices[split] for client in partition.clients]
    everyone = np.sort(np.concatenate(own))
    mine = {client.client_id: images for client, images in zip(partition.clients, own, strict=True)}
    grouped = None if groups is None else grouped_images(mine, groups)
    return tuple(
        ClientSplit(client.client_id, mine, everyone, grouped)
        for client, mine in zip(partition.clients, own, strict=True)
    )


def grouped_images(own: Mapping[int, np.ndarray], groups: np.ndarray) -> GroupedImages:
    """Return the groups of each client's images; images of one group at two clients are two groups.

    Args:
        own: images of each client.
        groups: [n] group of each image.
    """
    numbers, holders = np.full(len(groups), -1), [np.zeros(0, dtype=np.int64)]
    for client_id, mine in own.items():
        first = sum(map(len, holders))
        numbers[mine] = first + in_order(groups[mine])
        holders.append(np.full(int(numbers[mine].max(initial=first - 1)) + 1 - first, client_id))
    return GroupedImages(numbers, np.concatenate(holders))
