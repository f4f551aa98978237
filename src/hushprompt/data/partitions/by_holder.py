"""Partitions by who holds the data: by domain (vendor, site, style), or by the client that the data names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hushprompt import checks
from hushprompt.data.base import Dataset, Split
from hushprompt.data.partitions.base import Partition, PartitionRule, from_indices, from_shares, redraw
from hushprompt.errors import ConfigError
from hushprompt.registry import PARTITIONS


@dataclass(frozen=True, kw_only=True)
class InDomains(PartitionRule):
    """A rule that gives every client data of one domain."""

    clients_per_domain: int = 1
    """Clients that share a domain; a client never has two."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(clients_per_domain=self.clients_per_domain)

    def holders(self, split: Split) -> np.ndarray:
        """Return the domain of each example [n]: a group with examples in two domains is one in each."""
        return split.domains

    def from_domain_shares(self, dataset: Dataset, inner: np.ndarray, rng: np.random.Generator) -> Partition:
        """Cut every domain by its own shares.

        Args:
            dataset: what is cut.
            inner: [d, i, c] share of client i of domain d in that domain's examples of class c.
            rng: decides which examples go where.
        """
        num_domains, per_domain, num_classes = inner.shape
        shares = np.zeros((num_domains * per_domain, num_domains * num_classes))
        for domain, block in enumerate(inner):
            rows = slice(domain * per_domain, (domain + 1) * per_domain)
            shares[rows, domain * num_classes : (domain + 1) * num_classes] = block
        groups = {name: split.domains * num_classes + split.labels for name, split in dataset.splits.items()}
        names = dataset.domain_names
        if per_domain > 1:
            names = tuple(f"{name} {place + 1}" for name in names for place in range(per_domain))
        return from_shares(dataset, shares, rng, groups=groups, names=names)


@PARTITIONS.register("by_domain")
@dataclass(frozen=True, kw_only=True)
class ByDomain(InDomains):
    """Clients are the data set's domains (feature shift), or several clients share one evenly."""

    def assign(self, dataset: Dataset, rng: np.random.Generator) -> Partition:
        """Deal out every domain evenly among its clients."""
        shape = (len(dataset.domain_names), self.clients_per_domain, len(dataset.class_names))
        return self.from_domain_shares(dataset, np.full(shape, 1 / self.clients_per_domain), rng)


@PARTITIONS.register("domain_dirichlet")
@dataclass(frozen=True, kw_only=True)
class DomainDirichlet(InDomains):
    """Several clients share each domain, with Dirichlet shares per class (feature and label shift)."""

    by_classes: ClassVar[bool] = True

    clients_per_domain: int = 2
    """Clients that share a domain; a client never has two."""
    alpha: float = 0.3
    """Concentration; large values approach even shares, small ones give each class to few clients."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(alpha=self.alpha)

    def assign(self, dataset: Dataset, rng: np.random.Generator) -> Partition:
        """Draw shares until no client is without training examples."""

        def draw() -> Partition:
            size = (len(dataset.domain_names), len(dataset.class_names))
            shares = rng.dirichlet(np.full(self.clients_per_domain, self.alpha), size=size)  # [d, c, i]
            return self.from_domain_shares(dataset, shares.transpose(0, 2, 1), rng)

        setting = f"fewer clients_per_domain (now {self.clients_per_domain}) or a larger alpha (now {self.alpha})"
        return redraw(draw, "Dirichlet", f"Use {setting}, and check that every domain has training examples.")


@PARTITIONS.register("by_client")
@dataclass(frozen=True, kw_only=True)
class ByClient(PartitionRule):
    """Real clients: those that the data itself names, such as a column of your file."""

    def assign(self, dataset: Dataset, rng: np.random.Generator) -> Partition:
        """Return every client its own examples; nothing is random."""
        parts = {}
        for name, split in dataset.splits.items():
            if split.clients is None:
                raise ConfigError(
                    f"The data set {dataset.name} does not say which client holds an example. Use another partition, "
                    "or data with a client column (table, questions, huggingface, webdataset)."
                )
            parts[name] = [np.flatnonzero(split.clients == client) for client in range(len(dataset.client_names))]
        empty = [name for name, part in zip(dataset.client_names, parts["train"], strict=True) if len(part) == 0]
        if empty:
            raise ConfigError(
                f"These clients of {dataset.name} have no training example: {', '.join(empty)}. Give them some, or "
                "take them out of the data."
            )
        return from_indices(dataset, parts, dataset.client_names)

    def holders(self, split: Split) -> np.ndarray:
        """Return the client of each example [n]: whose a group is, the data say."""
        return super().holders(split) if split.clients is None else split.clients
