import dataclasses
import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.label_data import counts, cut, dataset_of
from hushprompt import seeding
from hushprompt.data.partitions.base import DeclaresClasses, allocate, few_shot, from_shares
from hushprompt.data.partitions.by_class import IID, Dirichlet, DisjointClasses
from hushprompt.data.sets.emoji100 import Emoji100
from hushprompt.errors import ConfigError
from hushprompt.registry import PARTITIONS

counted = st.builds(
    lambda name, clients: PARTITIONS.get(name)(num_clients=clients),
    st.sampled_from(["disjoint_classes", "iid", "dirichlet", "quantity_skew"]),
    st.integers(1, 6),
)
overlapping = st.builds(
    lambda clients, shared, each: PARTITIONS.get("overlapping_classes")(
        num_clients=clients, shared_fraction=shared, clients_per_class=min(each, clients)
    ),
    st.integers(1, 6),
    st.floats(0, 1),
    st.integers(1, 4),
)
in_domains = st.builds(
    lambda name, each: PARTITIONS.get(name)(clients_per_domain=each),
    st.sampled_from(["by_domain", "domain_dirichlet"]),
    st.integers(1, 3),
)
rules = counted | overlapping | in_domains | st.just(PARTITIONS.get("by_client")())
shapes = st.fixed_dictionaries(
    {"num_classes": st.integers(6, 12), "num_domains": st.integers(1, 3), "num_clients": st.integers(1, 5)}
)


def test_every_registered_partition_is_tested_here():
    assert set(PARTITIONS.names()) == {
        "disjoint_classes", "iid", "dirichlet", "quantity_skew", "overlapping_classes", "by_domain", "domain_dirichlet",
        "by_client",
    }  # fmt: skip


@given(rules, shapes, st.integers(0, 99))
def test_every_example_goes_to_exactly_one_client_and_none_is_empty(rule, shape, seed):
    dataset = dataset_of(**shape)
    partition = cut(rule, dataset, seed)
    for name, split in dataset.splits.items():
        owned = np.concatenate([client.indices[name] for client in partition.clients])
        assert sorted(owned) == list(range(len(split)))
    assert min(len(client.indices["train"]) for client in partition.clients) > 0
    assert [client.client_id for client in partition.clients] == list(range(len(partition.clients)))
    for client, row in zip(partition.clients, counts(partition, dataset), strict=True):
        assert client.classes == tuple(np.flatnonzero(row))


@given(rules, shapes, st.integers(0, 99))
def test_the_same_stream_cuts_alike(rule, shape, seed):
    dataset = dataset_of(**shape)
    first, second = (cut(rule, dataset, seed) for _ in range(2))
    for left, right in zip(first.clients, second.clients, strict=True):
        assert (left.classes, left.name) == (right.classes, right.name)
        assert all(np.array_equal(left.indices[split], right.indices[split]) for split in left.indices)


@given(rules, shapes, st.integers(2, 40), st.integers(0, 99))
def test_groups_stay_whole_within_what_the_data_say_of_holders(rule, shape, num_groups, seed):
    draw = np.random.default_rng(seed).integers
    dataset = dataset_of(**shape, groups=lambda count: draw(num_groups, size=count))
    try:
        partition = cut(rule, dataset, seed, keeps_groups=True)
    except ConfigError:  # too few groups for so many clients, or with classes of several
        return
    seen = {}
    for name, split in dataset.splits.items():
        assert sorted(np.concatenate([client.indices[name] for client in partition.clients])) == list(range(len(split)))
        for client in partition.clients:
            own = client.indices[name]
            for unit in zip(split.groups[own], rule.holders(split)[own], strict=True):
                assert seen.setdefault(unit, client.client_id) == client.client_id
    if isinstance(rule, DeclaresClasses):
        sets = rule.class_sets(shape["num_classes"], np.random.default_rng(seed))
        assert all({*client.classes} <= {*own} for client, own in zip(partition.clients, sets, strict=True))


@given(rules, shapes, st.integers(0, 99))
def test_groups_of_one_are_cut_as_examples_are(rule, shape, seed):
    start = itertools.count()
    dataset = dataset_of(**shape, groups=lambda count: np.array([next(start) for _ in range(count)])[::-1])
    plain, grouped = (cut(rule, dataset, seed, keeps_groups=keeps) for keeps in (False, True))
    for left, right in zip(plain.clients, grouped.clients, strict=True):
        assert (left.classes, left.name) == (right.classes, right.name)
        assert all(np.array_equal(left.indices[split], right.indices[split]) for split in left.indices)


def test_a_group_with_classes_of_two_clients_is_refused_where_classes_are_dealt_out():
    dataset = dataset_of(6, groups=lambda count: (np.arange(count) + 3) // 6)
    with pytest.raises(ConfigError, match=r"others too \(1 class\), as groups stay whole.*iid or dirichlet"):
        cut(DisjointClasses(num_clients=3), dataset, keeps_groups=True)


@given(counted | in_domains, shapes, st.integers(1, 5), st.integers(0, 99))
def test_few_shots_are_a_subset_of_all_training_examples_and_leave_test_alone(rule, shape, num_shots, seed):
    dataset = dataset_of(**shape)
    few = cut(dataclasses.replace(rule, num_shots=num_shots), dataset, seed)
    whole = cut(rule, dataset, seed)
    for some, everything in zip(few.clients, whole.clients, strict=True):
        assert set(some.indices["train"]) <= set(everything.indices["train"])
        assert np.array_equal(some.indices["test"], everything.indices["test"])
    assert np.array_equal(counts(few, dataset), np.minimum(counts(whole, dataset), num_shots))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("disjoint_classes", "a84924169644a124"), ("iid", "b6bfbfb82b881000"), ("dirichlet", "3efb67bb3ac9c02c")],
)
def test_cuts_of_the_embedded_data_never_change(name, expected):
    partition = PARTITIONS.get(name)(num_clients=10).partition(Emoji100().load(), seeding.stream(1, "partition"))
    digest = hashlib.sha256()
    for client in partition.clients:
        indices = sorted((split, index.tolist()) for split, index in client.indices.items())
        digest.update(repr((client.client_id, client.classes, indices)).encode())
    assert digest.hexdigest()[:16] == expected


def test_allocation_keeps_each_cut_within_one_example_of_its_share():
    labels = np.repeat([0, 1], 10)
    shares = np.array([[1 / 3, 0.5], [1 / 3, 0.25], [1 / 3, 0.25]])
    parts = allocate(labels, shares, np.random.default_rng(0))
    table = np.stack([np.bincount(labels[part], minlength=2) for part in parts])
    assert table.sum(axis=0).tolist() == [10, 10]
    assert np.abs(table - shares * 10).max() <= 1


def test_few_shots_are_random_but_repeatable():
    dataset = dataset_of(2, train=50)
    whole = cut(IID(num_clients=2), dataset)
    labels = dataset.splits["train"].labels
    first, again, other = (few_shot(whole, labels, 3, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(first.clients[0].indices["train"], again.clients[0].indices["train"])
    assert not np.array_equal(first.clients[0].indices["train"], other.clients[0].indices["train"])


def test_impossible_cuts_say_what_to_do():
    with pytest.raises(ConfigError, match=r"Client b would have no training example.*Use fewer clients"):
        from_shares(dataset_of(1, train=2), np.array([[1.0], [0.0]]), np.random.default_rng(0), names=("a", "b"))
    with pytest.raises(ConfigError, match=r"Dirichlet draws all left a client empty\. Use fewer clients \(now 9"):
        cut(Dirichlet(num_clients=9, alpha=0.01), dataset_of(2, train=3))
    with pytest.raises(ConfigError, match="num_shots must be >= 0"):
        IID(num_shots=-1)
