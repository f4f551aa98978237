import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.label_data import counts, cut, dataset_of
from hushprompt.data.partitions.by_class import IID, Dirichlet, DisjointClasses, OverlappingClasses, QuantitySkew
from hushprompt.errors import ConfigError


@given(st.integers(1, 9), st.integers(0, 99))
def test_disjoint_classes_have_one_owner_each_the_same_in_train_and_test(num_clients, seed):
    dataset = dataset_of(9)
    partition = cut(DisjointClasses(num_clients=num_clients), dataset, seed)
    owned = [label for client in partition.clients for label in client.classes]
    assert sorted(owned) == list(range(9))
    sizes = [len(client.classes) for client in partition.clients]
    assert max(sizes) - min(sizes) <= 1
    for client in partition.clients:
        assert set(dataset.splits["test"].labels[client.indices["test"]]) == set(client.classes)


def test_the_seed_decides_which_classes_go_where():
    first, second = (cut(DisjointClasses(num_clients=3), dataset_of(9), seed) for seed in (0, 1))
    assert [c.classes for c in first.clients] != [c.classes for c in second.clients]


@given(st.integers(2, 6), st.integers(2, 4), st.floats(0, 1), st.integers(0, 99))
def test_a_shared_class_is_at_as_many_clients_as_share_it_in_train_and_test(num_clients, each, shared, seed):
    each = min(each, num_clients)
    dataset = dataset_of(10, train=12, test=12)
    rule = OverlappingClasses(num_clients=num_clients, clients_per_class=each, shared_fraction=shared)
    partition = cut(rule, dataset, seed)
    owners = counts(partition, dataset) > 0
    assert np.array_equal(owners, counts(partition, dataset, "test") > 0)
    num_owners = owners.sum(axis=0)
    assert set(num_owners) <= {1, each}
    assert (num_owners == each).sum() == round(shared * 10)
    assert owners.sum(axis=1).max() - owners.sum(axis=1).min() <= 1


def test_clients_of_a_shared_class_get_equal_shares():
    dataset = dataset_of(4, train=12)
    table = counts(cut(OverlappingClasses(num_clients=4, clients_per_class=3), dataset), dataset)
    assert sorted(np.unique(table)) == [0, 4]


def test_iid_shares_are_even_in_every_class():
    dataset = dataset_of(3)
    assert (counts(cut(IID(num_clients=4), dataset), dataset) == 3).all()


def test_a_small_alpha_concentrates_and_a_large_one_spreads():
    dataset = dataset_of(20, train=50)
    table = {alpha: counts(cut(Dirichlet(num_clients=5, alpha=alpha), dataset), dataset) for alpha in (0.1, 1000.0)}
    assert table[0.1].max(axis=0).mean() > 35
    assert table[1000.0].max(axis=0).mean() < 14


@pytest.mark.parametrize("sizes", ["log_normal", "dirichlet"])
def test_skewed_sizes_keep_the_mix_of_classes(sizes):
    dataset = dataset_of(4, train=200, test=100)
    partition = cut(QuantitySkew(num_clients=5, sizes=sizes, sigma=1.5), dataset)
    table = counts(partition, dataset)
    totals = table.sum(axis=1)
    assert totals.max() > 3 * totals.min()
    assert np.ptp(table, axis=1).max() <= 1
    assert np.abs(counts(partition, dataset, "test") / 100 - table / 200).max() < 0.02


def test_no_skew_is_even():
    dataset = dataset_of(3)
    assert (counts(cut(QuantitySkew(num_clients=4, sigma=0), dataset), dataset) == 3).all()


def test_impossible_cuts_say_what_to_do():
    with pytest.raises(ConfigError, match=r"num_clients must be at most the number of classes, 4.*got 5"):
        cut(DisjointClasses(num_clients=5), dataset_of(4))
    with pytest.raises(ConfigError, match="make 6 shares, fewer than 8 clients"):
        cut(OverlappingClasses(num_clients=8, clients_per_class=2), dataset_of(3))
    with pytest.raises(ConfigError, match=r"clients_per_class must lie in \[1, 2\], got 3"):
        OverlappingClasses(num_clients=2, clients_per_class=3)
    with pytest.raises(ConfigError, match=r"quantity draws all left a client empty.*smaller sigma \(now 9"):
        cut(QuantitySkew(num_clients=10, sigma=9), dataset_of(2))
    with pytest.raises(ConfigError, match="alpha must be > 0"):
        Dirichlet(alpha=0)
    with pytest.raises(ConfigError, match="sigma must be a finite number"):
        QuantitySkew(sigma=float("inf"))
