import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushprompt.data.partition import IID, Dirichlet, DisjointClasses, allocate, from_shares
from hushprompt.errors import ConfigError
from hushprompt.registry import PARTITIONS


def labels_of(num_classes, train=12, test=5):
    return {"train": np.repeat(np.arange(num_classes), train), "test": np.repeat(np.arange(num_classes), test)}


def cut(strategy, labels, num_classes, seed=0):
    domains = {name: values * 0 for name, values in labels.items()}
    return strategy.partition(labels, domains, num_classes, np.random.default_rng(seed))


strategies = st.builds(
    lambda name, clients: PARTITIONS.get(name)(num_clients=clients),
    st.sampled_from(["disjoint_classes", "iid", "dirichlet"]),
    st.integers(1, 6),
)


@given(strategies, st.integers(6, 20), st.integers(0, 99))
def test_every_example_goes_to_exactly_one_client_and_none_is_empty(strategy, num_classes, seed):
    labels = labels_of(num_classes)
    partition = cut(strategy, labels, num_classes, seed)
    assert len(partition.clients) == strategy.num_clients
    for split, values in labels.items():
        owned = np.concatenate([client.indices[split] for client in partition.clients])
        assert sorted(owned) == list(range(len(values)))
    assert min(len(client.indices["train"]) for client in partition.clients) > 0


@given(strategies, st.integers(0, 99))
def test_the_same_stream_cuts_alike(strategy, seed):
    first, second = (cut(strategy, labels_of(8), 8, seed) for _ in range(2))
    for left, right in zip(first.clients, second.clients, strict=True):
        assert left.classes == right.classes
        assert all(np.array_equal(left.indices[split], right.indices[split]) for split in left.indices)


@given(st.integers(1, 9), st.integers(0, 99))
def test_disjoint_classes_have_one_owner_each_the_same_in_train_and_test(num_clients, seed):
    labels = labels_of(9)
    partition = cut(DisjointClasses(num_clients=num_clients), labels, 9, seed)
    owned = [label for client in partition.clients for label in client.classes]
    assert sorted(owned) == list(range(9))
    sizes = [len(client.classes) for client in partition.clients]
    assert max(sizes) - min(sizes) <= 1
    for client in partition.clients:
        assert set(labels["test"][client.indices["test"]]) == set(client.classes)


def test_iid_shares_are_even_in_every_class():
    partition = cut(IID(num_clients=4), labels_of(3), 3)
    assert (partition.class_counts(labels_of(3)["train"], 3) == 3).all()


def test_a_small_alpha_concentrates_and_a_large_one_spreads():
    labels = labels_of(20, train=50)
    table = {
        alpha: cut(Dirichlet(num_clients=5, alpha=alpha), labels, 20).class_counts(labels["train"], 20)
        for alpha in (0.1, 1000.0)
    }
    assert table[0.1].max(axis=0).mean() > 35
    assert table[1000.0].max(axis=0).mean() < 14


def test_the_seed_decides_which_classes_go_where():
    first, second = (cut(DisjointClasses(num_clients=3), labels_of(9), 9, seed) for seed in (0, 1))
    assert [c.classes for c in first.clients] != [c.classes for c in second.clients]


def test_allocation_keeps_each_cut_within_one_example_of_its_share():
    labels = np.repeat([0, 1], 10)
    shares = np.array([[1 / 3, 0.5], [1 / 3, 0.25], [1 / 3, 0.25]])
    parts = allocate(labels, shares, np.random.default_rng(0))
    counts = np.stack([np.bincount(labels[part], minlength=2) for part in parts])
    assert counts.sum(axis=0).tolist() == [10, 10]
    assert np.abs(counts - shares * 10).max() <= 1


def test_impossible_cuts_say_what_to_do():
    with pytest.raises(ConfigError, match=r"num_clients must be at most the number of classes, 4.*got 5"):
        cut(DisjointClasses(num_clients=5), labels_of(4), 4)
    with pytest.raises(ConfigError, match=r"no training example.*Use fewer clients"):
        from_shares(labels_of(1, train=2), np.array([[1.0], [0.0]]), np.random.default_rng(0))
    with pytest.raises(ConfigError, match="Dirichlet draws all left a client empty"):
        cut(Dirichlet(num_clients=9, alpha=0.01), labels_of(2, train=3), 2)
    with pytest.raises(ConfigError, match="alpha must be > 0"):
        Dirichlet(alpha=0)
