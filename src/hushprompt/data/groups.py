"""Groups of examples that belong together, such as the images of one patient: who has which, and what may be wrong.

Where `privacy.privacy_unit = "group"`, a client's group is protected as a whole. Names of groups stay with the owner
of the data; whatever leaves knows their number alone.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from hushprompt.data.base import Dataset
from hushprompt.data.findings import Finding, finding
from hushprompt.data.listing import Example
from hushprompt.data.partitions.base import Partition
from hushprompt.errors import ConfigError, DataError

NO_GROUPS = (
    'privacy.privacy_unit = "group" protects all that one client has of a group, and {dataset} does not say which '
    "examples belong together. Give its table a column group, set data.group_pattern to a regular expression that "
    'finds the group in a path, or set data.duplicates = "group" where copies alone belong together.'
)


def name_in_path(pattern: str, path: str) -> str:
    r"""Return the group that a path names: what the first pair of parentheses matches, or else the whole pattern.

    Raises:
        DataError: the pattern finds nothing in the path.

    >>> name_in_path(r"patient(\d+)", "cat/patient07_left.png")
    '07'
    """
    found = re.search(pattern, path)
    name = found and (found[1] if found.re.groups else found[0])
    if not name:
        raise DataError(
            f"data.group_pattern = {pattern!r} finds no group in {path}. Every example needs one: change the pattern, "
            "or take the example out."
        )
    return name


def check_pattern(pattern: str) -> None:
    """Raise ConfigError for a text that is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"data.group_pattern = {pattern!r} is no regular expression ({error}).") from error


def with_copies(
    examples: Sequence[Example], group_names: Sequence[str], copies: Sequence[Sequence[int]]
) -> tuple[list[Example], tuple[str, ...]]:
    """Put copies into one group, and with them all that belongs to either.

    Args:
        examples: of a data set.
        group_names: in the order of their groups; empty where nobody named any: an example without copies is alone.
        copies: sets of rows of `examples` with equal bytes.

    Returns:
        The examples with their groups, and the names of the groups, if they have any.
    """
    own = [row if example.group is None else example.group for row, example in enumerate(examples)]
    first = list(range(max(own) + 1))

    def root(group: int) -> int:
        while first[group] != group:
            group = first[group]
        return group

    for rows in copies:
        roots = {root(own[row]) for row in rows}
        for other in roots:
            first[other] = min(roots)
    kept = sorted({root(group) for group in own})
    place = {group: number for number, group in enumerate(kept)}
    joined = [example._replace(group=place[root(group)]) for example, group in zip(examples, own, strict=True)]
    return joined, tuple(group_names[group] for group in kept if group_names)


def with_groups(partition: Partition, dataset: Dataset) -> Partition:
    """Return a partition whose clients know the groups of their training examples.

    Raises:
        ConfigError: the data do not say which examples belong together.
    """
    groups = dataset.splits["train"].groups
    if groups is None:
        raise ConfigError(NO_GROUPS.format(dataset=dataset.name))
    of = {name: split.groups for name, split in dataset.splits.items() if split.groups is not None}
    clients = [
        dataclasses.replace(
            client,
            groups=in_order(groups[client.indices["train"]]),
            num_groups={name: len(np.unique(of[name][own])) for name, own in client.indices.items() if name in of},
        )
        for client in partition.clients
    ]
    return Partition(tuple(clients))


def in_order(groups: np.ndarray) -> np.ndarray:
    """Number groups from 0 by the place where each stands first.

    >>> in_order(np.array([7, 3, 7, 9])).tolist()
    [0, 1, 0, 2]
    """
    _, first, place = np.unique(groups, return_index=True, return_inverse=True)
    order = np.empty(len(first), dtype=np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    numbered: np.ndarray = order[place]
    return numbered


def across_splits(dataset: Dataset) -> list[Finding]:
    """Return a finding about groups that are in training and in another split."""
    train = dataset.splits["train"].groups
    others = [split.groups for name, split in dataset.splits.items() if name != "train" and split.groups is not None]
    is_named = bool(dataset.group_names and others)
    both = [] if train is None or not is_named else np.intersect1d(train, np.concatenate(others)).tolist()
    message = "Examples of one group are in training and in validation or test, so scores are too high"
    return finding("groups_across_splits", message, [dataset.group_names[group] for group in both])


def across_clients(dataset: Dataset, partition: Partition | None) -> list[Finding]:
    """Return a finding about groups of which two clients train on examples, by a partition or by what the data say."""
    train = dataset.splits["train"]
    if train.groups is None or not dataset.group_names:
        return []
    if partition is not None:
        held = [np.unique(train.groups[client.indices["train"]]) for client in partition.clients]
    elif train.clients is not None:
        held = [np.unique(train.groups[train.clients == client]) for client in np.unique(train.clients)]
    else:
        return []
    names, counts = np.unique(np.concatenate(held), return_counts=True)
    message = "A group has examples at two clients and counts there as two, each with a guarantee of its own"
    return finding("groups_across_clients", message, [dataset.group_names[group] for group in names[counts > 1]])
