"""Partitions that look at nothing but classes: disjoint, overlapping, IID, Dirichlet, and skewed sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from hushprompt import checks
from hushprompt.data.base import Dataset
from hushprompt.data.partitions.base import Partition, PartitionRule, from_shares, redraw
from hushprompt.errors import ConfigError
from hushprompt.registry import PARTITIONS


@dataclass(frozen=True, kw_only=True)
class Counted(PartitionRule):
    """A rule that makes a given number of clients."""

    num_clients: int = 10
    """Number of clients k."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(num_clients=self.num_clients)


@PARTITIONS.register("disjoint_classes")
@dataclass(frozen=True, kw_only=True)
class DisjointClasses(Counted):
    """Every class belongs to exactly one client (pathological label shift)."""

    by_classes: ClassVar[bool] = True

    def class_sets(self, num_classes: int, rng: np.random.Generator) -> tuple[tuple[int, ...], ...]:
        """Shuffle the classes and deal them out in near-equal blocks: public, as no image has a say in it."""
        if self.num_clients > num_classes:
            raise ConfigError(
                f"partition.num_clients must be at most the number of classes, {num_classes}, in a disjoint split, got "
                f"{self.num_clients}. Use fewer clients, or a partition that shares classes (dirichlet, iid)."
            )
        blocks = np.array_split(rng.permutation(num_classes), self.num_clients)
        return tuple(tuple(sorted(block.tolist())) for block in blocks)

    def assign(self, dataset: Dataset, rng: np.random.Generator) -> Partition:
        """Return all examples of its classes to each client."""
        num_classes = len(dataset.class_names)
        shares = np.zeros((self.num_clients, num_classes))
        for client_id, classes in enumerate(self.class_sets(num_classes, rng)):
            shares[client_id, list(classes)] = 1.0
        return from_shares(dataset, shares, rng)


@PARTITIONS.register("overlapping_classes")
@dataclass(frozen=True, kw_only=True)
class OverlappingClasses(Counted):
    """Classes belong to several clients each, in equal shares; all classes, or a fraction of them."""

    by_classes: ClassVar[bool] = True

    clients_per_class: int = 2
    """Clients that share a class."""
    shared_fraction: float = 1.0
    """Fraction of the classes that are shared; each of the others belongs to one client."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.in_range(0, 1, shared_fraction=self.shared_fraction)
        checks.in_range(1, self.num_clients, clients_per_class=self.clients_per_class)

    def class_sets(self, num_classes: int, rng: np.random.Generator) -> tuple[tuple[int, ...], ...]:
        """Deal out shuffled classes: public, as no image has a say in it."""
        return tuple(tuple(np.flatnonzero(own).tolist()) for own in self._shares(num_classes, rng))

    def assign(self, dataset: Dataset, rng: np.random.Generator) -> Partition:
        """Return to each client its share of the examples of its classes."""
        return from_shares(dataset, self._shares(len(dataset.class_names), rng), rng)

    def _shares(self, num_classes: int, rng: np.random.Generator) -> np.ndarray:
        """Return [k, c] shares: shuffled classes are dealt in turn, a shared one to as many in a row as share it."""
        num_shared = round(self.shared_fraction * num_classes)
        shares = np.zeros((self.num_clients, num_classes))
        turn = 0
        for place, label in enumerate(rng.permutation(num_classes)):
            num_owners = self.clients_per_class if place < num_shared else 1
            owners = (turn + np.arange(num_owners)) % self.num_clients
            shares[owners, label] = 1 / num_owners
            turn += num_owners
        if turn < self.num_clients:
            raise ConfigError(
                f"{num_classes} classes, {num_shared} of them at {self.clients_per_class} clients, make {turn} shares, "
                f"fewer than {self.num_clients} clients. Use fewer clients, or more clients_per_class."
            )
        return shares


@PARTITIONS.register("iid")
@dataclass(frozen=True, kw_only=True)
class IID(Counted):
    """Every client gets an equal share of every class."""

    def assign(self, dataset: Dataset, rng: np.random.Generator) -> Partition:
        """Deal out every class evenly."""
        shares = np.full((self.num_clients, len(dataset.class_names)), 1 / self.num_clients)
        return from_shares(dataset, shares, rng)


@PARTITIONS.register("dirichlet")
@dataclass(frozen=True, kw_only=True)
class Dirichlet(Counted):
    """Per class, the clients' shares are drawn from a Dirichlet distribution (Hsu et al. 2019, arXiv:1909.06335)."""

    by_classes: ClassVar[bool] = True

    alpha: float = 0.3
    """Concentration; large values approach IID, small ones give each class to few clients."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(alpha=self.alpha)

    def assign(self, dataset: Dataset, rng: np.random.Generator) -> Partition:
        """Draw shares until no client is without training examples."""

        def draw() -> Partition:
            concentration = np.full(self.num_clients, self.alpha)
            shares = rng.dirichlet(concentration, size=len(dataset.class_names)).T  # [k, c]
            return from_shares(dataset, shares, rng)

        remedy = f"Use fewer clients (now {self.num_clients}) or a larger alpha (now {self.alpha})."
        return redraw(draw, "Dirichlet", remedy)


@PARTITIONS.register("quantity_skew")
@dataclass(frozen=True, kw_only=True)
class QuantitySkew(Counted):
    """Clients have all classes in equal proportions, but very different amounts of data."""

    sizes: Literal["log_normal", "dirichlet"] = "log_normal"
    """Distribution of the clients' sizes."""
    sigma: float = 1.0
    """For log_normal: standard deviation of the logarithm of a size; 0 makes all equal."""
    alpha: float = 0.5
    """For dirichlet: concentration; small values give most data to few clients."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(alpha=self.alpha)
        checks.non_negative(sigma=self.sigma)
        checks.finite(sigma=self.sigma)

    def assign(self, dataset: Dataset, rng: np.random.Generator) -> Partition:
        """Draw sizes until no client is without training examples."""

        def draw() -> Partition:
            if self.sizes == "dirichlet":
                sizes = rng.dirichlet(np.full(self.num_clients, self.alpha))
            else:
                sizes = rng.lognormal(sigma=self.sigma, size=self.num_clients)
            shares = np.repeat(sizes[:, None] / sizes.sum(), len(dataset.class_names), axis=1)  # [k, c]
            return from_shares(dataset, shares, rng)

        setting = f"a larger alpha (now {self.alpha})"
        if self.sizes == "log_normal":
            setting = f"a smaller sigma (now {self.sigma})"
        return redraw(draw, "quantity", f"Use fewer clients (now {self.num_clients}) or {setting}.")
