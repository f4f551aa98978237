"""Examples with equal bytes: where they are, and which of them no run may train on.

A picture that stands k times in one client's training set is protected k times less (`privacy/copies.py`). One that is
in training and in test makes test accuracy too high. One that two clients hold is protected by neither's guarantee
alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from hushprompt.data.base import Copies, Dataset, Split
from hushprompt.data.findings import SHOWN, Finding, finding
from hushprompt.data.listing import Decoded, Sized, Source
from hushprompt.data.partitions.base import Partition
from hushprompt.errors import DataError

CHUNK = 256
"""Examples that one thread looks at in a row."""
PIECE = 4096
"""Bytes that are compared before whole files are."""


def find_copies(splits: Mapping[str, Split]) -> tuple[Copies, ...]:
    """Return the sets of examples with equal bytes, in the order of the splits.

    Only files of equal size are looked into, and only those that are equal in the middle are read.

    Raises:
        DataError: an example is not there.
    """
    groups = [[(name, index) for name, split in splits.items() for index in range(len(split))]]
    for key in (_size, _piece, _digest):
        groups = _parted(splits, groups, key)
    return tuple(tuple(group) for group in groups)


def _parted(
    splits: Mapping[str, Split], groups: Sequence[list[tuple[str, int]]], key_of: Callable[[Split, int], Hashable]
) -> list[list[tuple[str, int]]]:
    """Part groups by a key, and leave out what has no equal."""
    places = [(number, place) for number, group in enumerate(groups) for place in group]
    chunks = [places[start : start + CHUNK] for start in range(0, len(places), CHUNK)]

    def keys(chunk: list[tuple[int, tuple[str, int]]]) -> list[Hashable]:
        return [(number, key_of(splits[name], index)) for number, (name, index) in chunk]

    parts: dict[Hashable, list[tuple[str, int]]] = {}
    with ThreadPoolExecutor(16) as pool:
        for chunk, found in zip(chunks, pool.map(keys, chunks), strict=True):
            for (_, place), key in zip(chunk, found, strict=True):
                parts.setdefault(key, []).append(place)
    return [part for part in parts.values() if len(part) > 1]


def _size(split: Split, index: int) -> Hashable:
    """Return the number of bytes, where it is known without reading."""
    source, row = _source(split, index)
    return source.size(row) if isinstance(source, Sized) else None


def _piece(split: Split, index: int) -> Hashable:
    """Return some bytes from the middle of an example, where they can be read alone."""
    source, row = _source(split, index)
    return source.piece(row, source.size(row) // 2, PIECE) if isinstance(source, Sized) else None


def _digest(split: Split, index: int) -> Hashable:
    """Return a hash of all bytes of an example."""
    source, row = _source(split, index)
    if source is not None:
        return hashlib.sha256(source.fetch(row)).digest()
    (example,) = split.read(np.array([index]))
    return example.shape, hashlib.sha256(example.tobytes()).digest()


def _source(split: Split, index: int) -> tuple[Source | None, int]:
    """Return where the bytes of an example lie, and in which row; None where they are not in a file."""
    if not isinstance(split.read, Decoded):
        return None, index
    return split.read.source, int(split.read.rows[index])


def name_of(dataset: Dataset, place: tuple[str, int]) -> str:
    """Return the path of an example, or its split and index where it has none."""
    name, index = place
    source, row = _source(dataset.splits[name], index)
    return f"{name}[{index}]" if source is None else source.describe(row)


def across_splits(dataset: Dataset, copies: Sequence[Copies]) -> list[Finding]:
    """Return a finding about copies that are in training and in test, or in validation and in one of them."""
    return _across(
        "copies_across_splits",
        "The same example is in two splits, so scores are too high",
        dataset,
        copies,
        lambda place: place[0],
    )


def across_clients(dataset: Dataset, copies: Sequence[Copies], partition: Partition | None) -> list[Finding]:
    """Return a finding about copies that two clients train on, by a partition or else by what the data say."""
    holders = _holders(dataset, copies, partition)
    held = [[place for place in group if place[0] == "train" and place[1] in holders] for group in copies]
    message = "The same example is at two clients, so neither client's guarantee covers it alone"
    return _across("copies_across_clients", message, dataset, held, lambda place: holders[place[1]])


def _holders(dataset: Dataset, copies: Sequence[Copies], partition: Partition | None) -> dict[int, int]:
    """Return the client of each training example, by index, where there are copies; 0 where nobody says."""
    train = dataset.splits["train"]
    if not copies:
        return {}
    if partition is not None:
        return {int(index): client.client_id for client in partition.clients for index in client.indices["train"]}
    return dict.fromkeys(range(len(train)), 0) if train.clients is None else dict(enumerate(train.clients.tolist()))


def _across(
    kind: str,
    message: str,
    dataset: Dataset,
    copies: Sequence[Sequence[tuple[str, int]]],
    part_of: Callable[[tuple[str, int]], Hashable],
) -> list[Finding]:
    """Return a finding about groups of copies with more than one part."""
    spread = [group for group in copies if len(set(map(part_of, group))) > 1]
    is_refused = dataset.duplicates == "refuse"
    return finding(kind, message, [_both(dataset, group, part_of) for group in spread], is_refused=is_refused)


def _both(dataset: Dataset, group: Sequence[tuple[str, int]], part_of: Callable[[tuple[str, int]], Hashable]) -> str:
    """Name the first of a group's copies and one that is in another part."""
    other = next(place for place in group if part_of(place) != part_of(group[0]))
    return f"{name_of(dataset, group[0])} = {name_of(dataset, other)}"


def in_training(dataset: Dataset, copies: Sequence[Copies], partition: Partition | None) -> dict[int, Counter[int]]:
    """Return, for each client, how often the images stand in its training set that stand there more than once.

    Where groups are the unit, copies within one count once: they are protected together.

    Returns:
        By client, the number of images by their number of copies k > 1. A partition says who holds what, or the data.
    """
    holders, found = _units(dataset, copies, partition), dict[int, Counter[int]]()
    for group in copies:
        for client_id, count in _counts(group, holders).items():
            found.setdefault(client_id, Counter())[count] += 1
    return found


def _units(dataset: Dataset, copies: Sequence[Copies], partition: Partition | None) -> dict[int, tuple[int, int]]:
    """Return client and unit of each training example, by index: the example itself, or its group."""
    holders, groups = _holders(dataset, copies, partition), dataset.splits["train"].groups
    if groups is None or not (dataset.duplicates == "group" or _are_units(partition)):
        return {index: (holder, index) for index, holder in holders.items()}
    return {index: (holder, int(groups[index])) for index, holder in holders.items()}


def _are_units(partition: Partition | None) -> bool:
    """Tell whether groups are the privacy unit, so that clients of a partition know theirs."""
    return partition is not None and any(client.groups is not None for client in partition.clients)


def _counts(group: Copies, units: Mapping[int, tuple[int, int]]) -> dict[int, int]:
    """Return how often an image stands in the training set of each client that has it more than once."""
    distinct = {units[index] for name, index in group if name == "train" and index in units}
    counts = Counter(holder for holder, _ in distinct)
    return {client_id: count for client_id, count in counts.items() if count > 1}


def within_training(dataset: Dataset, copies: Sequence[Copies], partition: Partition | None) -> list[Finding]:
    """Return a finding about images that stand more than once in one client's training set."""
    units = _units(dataset, copies, partition)
    counts = {group: _counts(group, units) for group in copies}
    repeated = sum(len(by_client) for by_client in counts.values())
    if not repeated:
        return []
    most = max(max(by_client.values()) for by_client in counts.values() if by_client)
    shown = [
        " = ".join(name_of(dataset, place) for place in [each for each in group if each[0] == "train"][:2])
        for group, by_client in counts.items()
        if by_client
    ]
    where = f"in up to {most} groups of" if _are_units(partition) else f"up to {most} times in"
    message = f"The same example stands {where} one training set, and is protected less for that"
    return [Finding(kind="copies_in_training", message=message, count=repeated, paths=tuple(sorted(shown)[:SHOWN]))]


def refuse(dataset: Dataset, findings: Sequence[Finding]) -> None:
    """Raise DataError for findings that a run refuses."""
    for one in findings:
        if one.is_refused:
            raise DataError(
                f"Data set {dataset.name}: {one.line()}. Take all but one out; or, if they shall stay, set "
                'data.duplicates = "group" with privacy.privacy_unit = "group", which protects equal ones together, '
                'or data.duplicates = "allow". hushprompt data info --verify names what else there is.'
            )


def refuse_across_splits(dataset: Dataset) -> None:
    """Raise DataError where the same example is in two splits, unless data.duplicates allows it."""
    refuse(dataset, across_splits(dataset, dataset.copies))


def refuse_across_clients(dataset: Dataset, partition: Partition) -> None:
    """Raise DataError where the same example is at two clients, unless data.duplicates allows it."""
    refuse(dataset, across_clients(dataset, dataset.copies, partition))
