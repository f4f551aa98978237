"""A data set of labels alone, for tests of partitions."""

import numpy as np

from hushprompt.data.base import Dataset, Split


def dataset_of(num_classes, train=12, test=5, num_domains=1, num_clients=0, groups=lambda count: None):
    """Labels alone: `train` and `test` examples of each class in each domain; `groups` of so many examples."""

    def split(count):
        cells = np.repeat(np.arange(num_domains * num_classes), count)
        clients = np.arange(len(cells)) % num_clients if num_clients else None
        return Split(
            labels=cells % num_classes, domains=cells // num_classes, clients=clients, groups=groups(len(cells)),
            read=lambda _: [], fingerprint="",
        )  # fmt: skip

    return Dataset(
        name="numbers",
        class_names=tuple(f"class {label}" for label in range(num_classes)),
        domain_names=tuple(f"domain {domain}" for domain in range(num_domains)),
        client_names=tuple(f"site {client}" for client in range(num_clients)),
        splits={"train": split(train), "test": split(test)},
        citation="",
        license="",
    )


def cut(rule, dataset, seed=0, **how):
    return rule.partition(dataset, np.random.default_rng(seed), **how)


def counts(partition, dataset, split="train"):
    return partition.class_counts(dataset.splits[split].labels, len(dataset.class_names), split)
