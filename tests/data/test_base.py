import dataclasses

import numpy as np
import pytest

from hushprompt.data.base import Dataset, Split
from hushprompt.errors import DataError


def split(labels, domains=None):
    labels = np.array(labels, dtype=np.int64)
    images = np.zeros((len(labels), 2, 2, 3), dtype=np.uint8)
    domains = labels * 0 if domains is None else np.array(domains, dtype=np.int64)
    return Split(labels=labels, domains=domains, read=lambda index: list(images[index]), fingerprint="f")


def dataset(**changes):
    values = {
        "name": "d", "class_names": ("a", "b"), "domain_names": ("x",),
        "splits": {"train": split([0, 1]), "test": split([1])}, "citation": "c", "license": "l",
    }  # fmt: skip
    return Dataset(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ("a", "a")}, "class names occur twice: .'a'"),
        ({"splits": {"train": split([0])}}, "needs the splits train and test"),
        ({"splits": {"train": split([0, 2]), "test": split([1])}}, "train: labels run from 0 to 2, but there are 2"),
        ({"splits": {"train": split([0, -1]), "test": split([1])}}, "labels run from -1"),
        ({"splits": {"train": split([0], [1]), "test": split([1])}}, "domains run from 1 to 1"),
        ({"splits": {"train": split([0, 1], [0]), "test": split([1])}}, "1 domains for 2 examples"),
    ],
)
def test_an_inconsistent_data_set_is_refused_at_the_door(changes, message):
    with pytest.raises(DataError, match=message):
        dataset(**changes)


def test_a_consistent_one_is_not():
    assert len(dataset().splits["train"]) == 2


def test_some_rows_of_a_split_keep_all_that_is_known_of_them():
    rows = np.arange(3)
    whole = dataclasses.replace(
        split(rows, rows), clients=rows, groups=rows, questions=("a", "b", "c"), answers=(("1",), ("2",), ("3", "4"))
    )
    some = whole.at(np.array([2, 0]), "g")
    assert (some.questions, some.answers) == (("c", "a"), (("3", "4"), ("1",)))
    assert all(values.tolist() == [2, 0] for values in (some.labels, some.domains, some.clients, some.groups))
    assert len(some.read(np.array([1]))) == 1
    lost = {each.name for each in dataclasses.fields(some) if getattr(some, each.name) is None}
    assert lost == {"images"}, "a new field has to go with the rows too"
