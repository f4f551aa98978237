import dataclasses

import numpy as np
import pytest

from helpers.label_data import counts, cut, dataset_of
from hushprompt.data.partitions.by_holder import ByClient, ByDomain, DomainDirichlet
from hushprompt.errors import ConfigError


def domains_of(partition, dataset, split):
    return [set(dataset.splits[split].domains[client.indices[split]]) for client in partition.clients]


def test_clients_are_the_domains_in_their_order():
    dataset = dataset_of(4, num_domains=3)
    partition = cut(ByDomain(), dataset)
    assert [client.name for client in partition.clients] == ["domain 0", "domain 1", "domain 2"]
    for split in ("train", "test"):
        assert domains_of(partition, dataset, split) == [{0}, {1}, {2}]
    assert (counts(partition, dataset) == 12).all()


@pytest.mark.parametrize("rule", [ByDomain(clients_per_domain=3), DomainDirichlet(clients_per_domain=3, alpha=0.5)])
def test_several_clients_share_a_domain_and_have_no_other(rule):
    dataset = dataset_of(4, num_domains=2, train=60, test=60)
    partition = cut(rule, dataset)
    assert [client.name for client in partition.clients][:4] == ["domain 0 1", "domain 0 2", "domain 0 3", "domain 1 1"]
    for split in ("train", "test"):
        assert domains_of(partition, dataset, split) == [{0}] * 3 + [{1}] * 3


def test_dirichlet_shares_differ_between_domains_but_not_between_train_and_test():
    dataset = dataset_of(8, num_domains=2, train=100, test=100)
    partition = cut(DomainDirichlet(clients_per_domain=2, alpha=0.3), dataset)
    table = counts(partition, dataset)
    assert np.abs(table - counts(partition, dataset, "test")).max() <= 1
    assert np.abs(table[0] - table[2]).max() > 20
    assert table[:2].sum(axis=0).tolist() == [100] * 8


def test_real_clients_keep_their_examples_and_names():
    dataset = dataset_of(4, num_clients=3)
    partition = cut(ByClient(), dataset)
    assert [client.name for client in partition.clients] == ["site 0", "site 1", "site 2"]
    for split in ("train", "test"):
        for client in partition.clients:
            assert set(dataset.splits[split].clients[client.indices[split]]) == {client.client_id}


def test_impossible_cuts_say_what_to_do():
    with pytest.raises(ConfigError, match="does not say which client holds an example"):
        cut(ByClient(), dataset_of(4))
    dataset = dataset_of(4, num_clients=3)
    train = dataset.splits["train"]
    lonely = dataclasses.replace(train, clients=np.minimum(train.clients, 1))
    dataset = dataclasses.replace(dataset, splits={**dataset.splits, "train": lonely})
    with pytest.raises(ConfigError, match="have no training example: site 2"):
        cut(ByClient(), dataset)
    dataset = dataset_of(4, num_domains=2)
    train = dataset.splits["train"]
    dataset = dataclasses.replace(
        dataset, splits={**dataset.splits, "train": dataclasses.replace(train, domains=train.domains * 0)}
    )
    with pytest.raises(ConfigError, match="Client domain 1 would have no training example"):
        cut(ByDomain(), dataset)
    with pytest.raises(ConfigError, match="clients_per_domain must be > 0"):
        ByDomain(clients_per_domain=0)
