"""Partitions of a data set among clients: what all rules share. The rules are in `by_class.py` and `by_holder.py`.

Most rules say, for each client, which share of each class it gets; `from_shares` turns the shares into indices in the
same way for train, validation and test, so a client is tested on what it trains on. No example is dropped and none is
used twice, unless `num_shots` asks for few.
"""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from hushprompt import checks
from hushprompt.data.base import Dataset, Split
from hushprompt.errors import ConfigError
from hushprompt.words import counted

MAX_DRAWS = 100
"""Random shares before giving up on clients that stay empty."""


@dataclass(frozen=True)
class ClientShard:
    """One client's part of the data."""

    client_id: int
    classes: tuple[int, ...]
    """Classes of which it has training examples, sorted."""
    indices: Mapping[str, np.ndarray]
    """Sorted example indices [n_i] of each split."""
    name: str = ""
    """Of the domain or the real client, where it is one."""
    groups: np.ndarray | None = None
    """[n_i] group of each training example, numbered from 0 in their order; None where the unit is not a group."""
    num_groups: Mapping[str, int] = field(default_factory=dict)
    """Groups of each split, where the unit is a group."""

    def size_of(self, split: str) -> int:
        """Return the examples of a split, or groups of them where these are the unit."""
        return self.num_groups.get(split, len(self.indices[split]))

    @property
    def size(self) -> int:
        """The public size of its training set: the number of examples, or of groups where these are the unit."""
        return len(self.indices["train"]) if self.groups is None else int(self.groups.max()) + 1


@dataclass(frozen=True)
class Partition:
    """All clients; disjoint, and complete in every split."""

    clients: tuple[ClientShard, ...]

    @property
    def client_names(self) -> tuple[str, ...]:
        """Each client's name: of its domain or the real client, else of its number."""
        return tuple(client.name or f"client {client.client_id}" for client in self.clients)

    def class_counts(self, labels: np.ndarray, num_classes: int, split: str = "train") -> np.ndarray:
        """Return the clients x classes table [k, c] of one split."""
        rows = [np.bincount(labels[client.indices[split]], minlength=num_classes) for client in self.clients]
        return np.stack(rows)


@runtime_checkable
class DeclaresClasses(Protocol):
    """A rule that decides which classes each client may have without a look at the data: that is public then."""

    def class_sets(self, num_classes: int, rng: np.random.Generator) -> tuple[tuple[int, ...], ...]:
        """Return the classes of each client, sorted; `rng` as for `partition`."""


@dataclass(frozen=True, kw_only=True)
class PartitionRule(ABC):
    """The interface of a registered partition."""

    by_classes: ClassVar[bool] = False
    """Whether clients get other classes, and not other examples alone."""

    num_shots: int = 0
    """Training examples that a client keeps of each of its classes (few-shot); 0 keeps all. Test is never cut."""

    def __post_init__(self) -> None:
        checks.non_negative(num_shots=self.num_shots)

    def partition(self, dataset: Dataset, rng: np.random.Generator, *, keeps_groups: bool = False) -> Partition:
        """Cut a data set into clients.

        Args:
            dataset: what is cut.
            rng: decides who gets what.
            keeps_groups: whether examples of one group go to one client, in so far as the data themselves do not say
                who holds them.

        Raises:
            ConfigError: the rule cannot be kept with this data, or would leave a client without training examples.
        """
        has_groups = keeps_groups and dataset.splits["train"].groups is not None
        partition = of_whole_groups(self, dataset, rng) if has_groups else self.assign(dataset, rng)
        if self.num_shots:
            return few_shot(partition, dataset.splits["train"].labels, self.num_shots, rng)
        return partition

    @abstractmethod
    def assign(self, dataset: Dataset, rng: np.random.Generator) -> Partition:
        """Return every example to one client."""

    def holders(self, split: Split) -> np.ndarray:
        """Return who holds each example [n] whatever the rule draws, such as its domain; all zeros: nobody does."""
        return np.zeros(len(split), np.int64)


def of_whole_groups(rule: PartitionRule, dataset: Dataset, rng: np.random.Generator) -> Partition:
    """Cut a data set by groups of examples: the rule deals out the first example of each, the others follow.

    A group in training and in another split goes where it trains. Groups of one are cut as examples are.

    Raises:
        ConfigError: as of `PartitionRule.partition`; or the rule says which classes each client has, and a group has
            examples of classes of different clients.
    """
    before = copy.deepcopy(rng)
    units, firsts, known = _units(rule, dataset), {}, np.empty(0, np.int64)
    for name in sorted(units, key=lambda name: name != "train"):
        numbers, rows = np.unique(units[name], return_index=True)
        firsts[name] = np.sort(rows[~np.isin(numbers, known)])
        known = np.union1d(known, numbers)
    splits = {name: dataset.splits[name].at(rows, "") for name, rows in firsts.items()}
    dealt = rule.assign(dataclasses.replace(dataset, splits=splits, copies=()), rng).clients
    owners = np.full(known.max() + 1, -1)
    for client in dealt:
        for name, rows in firsts.items():
            owners[units[name][rows[client.indices[name]]]] = client.client_id
    parts = {name: [np.flatnonzero(owners[of] == client.client_id) for client in dealt] for name, of in units.items()}
    found = from_indices(dataset, parts, [client.name for client in dealt])
    if isinstance(rule, DeclaresClasses):
        _check_classes(found, rule.class_sets(len(dataset.class_names), before))
    return found


def _check_classes(partition: Partition, declared: Sequence[Sequence[int]]) -> None:
    """Raise ConfigError where a client has training examples of classes that its rule says it has not."""
    for client, own in zip(partition.clients, declared, strict=True):
        if others := {*client.classes} - {*own}:
            raise ConfigError(
                f"This partition says which classes a client has, and client {client.client_id} would get groups with "
                f"examples of others too ({counted(len(others), 'class')}), as groups stay whole. Use a partition that "
                "does not deal out classes, such as iid or dirichlet."
            )


def _units(rule: PartitionRule, dataset: Dataset) -> dict[str, np.ndarray]:
    """Return by split what stays together, numbered [n]: a group, within what the rule keeps apart."""
    splits = dataset.splits.values()
    groups = np.concatenate([np.full(len(split), -1) if split.groups is None else split.groups for split in splits])
    is_alone = groups < 0
    groups[is_alone] = groups.max() + 1 + np.arange(is_alone.sum())
    holders = np.concatenate([rule.holders(split) for split in splits])
    units = groups * (holders.max() + 1) + holders
    return dict(zip(dataset.splits, np.split(units, np.cumsum([len(split) for split in splits])[:-1]), strict=True))


def from_shares(
    dataset: Dataset,
    shares: np.ndarray,
    rng: np.random.Generator,
    *,
    groups: Mapping[str, np.ndarray] | None = None,
    names: Sequence[str] = (),
) -> Partition:
    """Cut every split by the same shares.

    Args:
        dataset: what is cut.
        shares: [k, g] non-negative; each column sums to 1.
        rng: decides which examples of a group go where.
        groups: [n] group of each example, by split; None: its class.
        names: of the clients, where they have names.

    Raises:
        ConfigError: a client would have no training example.
    """
    groups = groups or {name: split.labels for name, split in dataset.splits.items()}
    parts = {split: allocate(groups[split], shares, rng) for split in sorted(groups)}
    return from_indices(dataset, parts, names)


def from_indices(dataset: Dataset, parts: Mapping[str, Sequence[np.ndarray]], names: Sequence[str] = ()) -> Partition:
    """Make a partition of each client's indices, by split.

    Raises:
        ConfigError: a client would have no training example.
    """
    labels, clients = dataset.splits["train"].labels, []
    for client_id, train in enumerate(parts["train"]):
        name = names[client_id] if names else ""
        if len(train) == 0:
            raise ConfigError(
                f"Client {name or client_id} would have no training example: the {counted(len(labels), 'example')}, or "
                f"groups of them that stay whole, cannot go around {counted(len(parts['train']), 'client')} in this "
                "partition. Use fewer clients."
            )
        indices = {split: clients_parts[client_id] for split, clients_parts in parts.items()}
        classes = tuple(int(label) for label in np.unique(labels[train]))
        clients.append(ClientShard(client_id, classes, indices, name))
    return Partition(tuple(clients))


def allocate(labels: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Return each client its examples: class by class, shuffled, cut at the cumulative shares.

    Args:
        labels: [n] class (or group) of each example.
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


def redraw(draw: Callable[[], Partition], what: str, remedy: str) -> Partition:
    """Draw until no client is without training examples, at most `MAX_DRAWS` times.

    Raises:
        ConfigError: no draw succeeded; `what` was drawn, and `remedy` says what to change.
    """
    for _ in range(MAX_DRAWS):
        try:
            return draw()
        except ConfigError as error:
            empty = error
    raise ConfigError(f"{MAX_DRAWS} {what} draws all left a client empty. {remedy}") from empty


def few_shot(partition: Partition, labels: np.ndarray, num_shots: int, rng: np.random.Generator) -> Partition:
    """Keep at most `num_shots` random training examples of each class at each client; the other splits stay.

    Args:
        partition: of all examples.
        labels: [n] of the training split.
        num_shots: examples to keep.
        rng: decides which.
    """
    clients = []
    for client in partition.clients:
        train = client.indices["train"]
        members = [train[labels[train] == label] for label in client.classes]
        kept = np.sort(np.concatenate([rng.permutation(member)[:num_shots] for member in members]))
        clients.append(dataclasses.replace(client, indices={**client.indices, "train": kept}))
    return Partition(tuple(clients))
