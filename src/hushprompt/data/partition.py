"""How a data set is cut into clients: label distributions to index lists.

Every partition says, for each client, which share of each class it gets; `allocate` turns the shares into indices in
the same way for train, validation and test, so a client is tested on what it trains on. No example is dropped and none
is used twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hushprompt import checks
from hushprompt.errors import ConfigError
from hushprompt.registry import PARTITIONS

MAX_DRAWS = 100
"""Dirichlet draws before giving up on clients that stay empty."""


@dataclass(frozen=True)
class ClientShard:
    """One client's part of the data."""

    client_id: int
    classes: tuple[int, ...]
    """Classes of which it has training images, sorted."""
    indices: Mapping[str, np.ndarray]
    """Sorted example indices [n_i] of each split."""


@dataclass(frozen=True)
class Partition:
    """All clients; disjoint, and complete in every split."""

    clients: tuple[ClientShard, ...]

    def class_counts(self, labels: np.ndarray, num_classes: int, split: str = "train") -> np.ndarray:
        """Give the clients x classes table [k, c] of one split."""
        rows = [np.bincount(labels[client.indices[split]], minlength=num_classes) for client in self.clients]
        return np.stack(rows)


@PARTITIONS.register("disjoint_classes")
@dataclass(frozen=True, kw_only=True)
class DisjointClasses:
    """Every class belongs to exactly one client (pathological label shift)."""

    num_clients: int = 10
    """Number of clients k, at most the number of classes."""

    def __post_init__(self) -> None:
        """Check the field."""
        checks.positive(num_clients=self.num_clients)

    def partition(
        self,
        labels: Mapping[str, np.ndarray],
        domains: Mapping[str, np.ndarray],
        num_classes: int,
        rng: np.random.Generator,
    ) -> Partition:
        """Shuffle the classes and deal them out in near-equal blocks."""
        if self.num_clients > num_classes:
            raise ConfigError(
                f"partition.num_clients must be at most the number of classes, {num_classes}, in a disjoint split, got "
                f"{self.num_clients}. Use fewer clients, or a partition that shares classes (dirichlet, iid)."
            )
        shares = np.zeros((self.num_clients, num_classes))
        for client_id, block in enumerate(np.array_split(rng.permutation(num_classes), self.num_clients)):
            shares[client_id, block] = 1.0
        return from_shares(labels, shares, rng)


@PARTITIONS.register("iid")
@dataclass(frozen=True, kw_only=True)
class IID:
    """Every client gets an equal share of every class."""

    num_clients: int = 10
    """Number of clients k."""

    def __post_init__(self) -> None:
        """Check the field."""
        checks.positive(num_clients=self.num_clients)

    def partition(
        self,
        labels: Mapping[str, np.ndarray],
        domains: Mapping[str, np.ndarray],
        num_classes: int,
        rng: np.random.Generator,
    ) -> Partition:
        """Deal out every class evenly."""
        return from_shares(labels, np.full((self.num_clients, num_classes), 1 / self.num_clients), rng)


@PARTITIONS.register("dirichlet")
@dataclass(frozen=True, kw_only=True)
class Dirichlet:
    """Per class, the clients' shares are drawn from a Dirichlet distribution (Hsu et al. 2019, arXiv:1909.06335)."""

    num_clients: int = 10
    """Number of clients k."""
    alpha: float = 0.3
    """Concentration; large values approach IID, small ones give each class to few clients."""

    def __post_init__(self) -> None:
        """Check the fields."""
        checks.positive(num_clients=self.num_clients, alpha=self.alpha)

    def partition(
        self,
        labels: Mapping[str, np.ndarray],
        domains: Mapping[str, np.ndarray],
        num_classes: int,
        rng: np.random.Generator,
    ) -> Partition:
        """Draw shares until no client is without training images, at most `MAX_DRAWS` times."""
        for _ in range(MAX_DRAWS):
            shares = rng.dirichlet(np.full(self.num_clients, self.alpha), size=num_classes).T  # [k, c]
            try:
                return from_shares(labels, shares, rng)
            except ConfigError as error:
                empty = error
        raise ConfigError(
            f"{MAX_DRAWS} Dirichlet draws all left a client empty. Use fewer clients (now {self.num_clients}) or a "
            f"larger alpha (now {self.alpha})."
        ) from empty


def from_shares(labels: Mapping[str, np.ndarray], shares: np.ndarray, rng: np.random.Generator) -> Partition:
    """Cut every split by the same shares.

    Args:
        labels: [n] class of each example, by split.
        shares: [k, c] non-negative; each column sums to 1.
        rng: decides which examples of a class go where.

    Raises:
        ConfigError: a client would have no training example.
    """
    by_split = {split: allocate(labels[split], shares, rng) for split in sorted(labels)}
    clients = []
    for client_id in range(len(shares)):
        indices = {split: parts[client_id] for split, parts in by_split.items()}
        if len(indices["train"]) == 0:
            raise ConfigError(
                f"Client {client_id} would have no training example: {len(labels['train'])} examples do not go around "
                f"{len(shares)} clients in this partition. Use fewer clients."
            )
        classes = tuple(int(label) for label in np.unique(labels["train"][indices["train"]]))
        clients.append(ClientShard(client_id, classes, indices))
    return Partition(tuple(clients))


def allocate(labels: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Give each client its examples: class by class, shuffled, cut at the cumulative shares.

    Args:
        labels: [n] class of each example.
        shares: [k, c] each column sums to 1.
        rng: shuffles within a class.

    Returns:
        k sorted index arrays, disjoint and complete.
    """
    parts: list[list[np.ndarray]] = [[] for _ in shares]
    for label in range(shares.shape[1]):
        members = rng.permutation(np.flatnonzero(labels == label))
        # A share of 1/3 of 9 must not lose an example to 2.9999: round the cut points, not the sizes.
        cuts = np.rint(np.cumsum(shares[:, label])[:-1] * len(members)).astype(int)
        for client_id, part in enumerate(np.split(members, cuts)):
            parts[client_id].append(part)
    return [np.sort(np.concatenate(part)) for part in parts]
