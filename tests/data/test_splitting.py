import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushprompt.data.listing import Example
from hushprompt.data.splitting import check_fractions, hold_out, read_zhou_split, split_per_class, split_sizes
from hushprompt.errors import ConfigError, DataError


def examples_of(counts, clients=(None,)):
    return [
        Example(f"{label}/{client}/{index}", label, "", 0, client)
        for label, count in enumerate(counts)
        for client in clients
        for index in range(count)
    ]


NAMES = tuple("abcdefgh")


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_the_split_is_complete_and_ignores_the_order_and_the_other_classes(counts, random):
    examples = examples_of(counts)
    dealt = split_per_class(examples, NAMES, "d")
    assert sorted(e.name for e in dealt) == sorted(e.name for e in examples)
    shuffled = random.sample(examples, len(examples))
    assert split_per_class(shuffled, NAMES, "d") == dealt
    first = [e for e in dealt if e.label == 0]
    assert split_per_class([e for e in examples if e.label == 0], NAMES, "d") == first
    assert any(e.split == "train" for e in first)


def test_sizes_are_coops():
    sizes = Counter(e.split for e in split_per_class(examples_of([40]), NAMES, "d"))
    assert sizes == {"train": 20, "validation": 8, "test": 12}
    assert split_sizes(467, 0.2, 0.3) == (234, 93, 140)


@given(st.integers(1, 200), st.floats(0, 0.5), st.floats(0, 0.49))
def test_sizes_add_up_and_leave_something_to_train_on(count, validation, test):
    sizes = split_sizes(count, validation, test)
    assert sum(sizes) == count
    assert min(sizes) >= 0
    assert sizes[0] >= 1


def test_every_client_is_split_on_its_own_so_none_is_without_training_examples():
    dealt = split_per_class(examples_of([3, 3], clients=(0, 1, 2)), NAMES, "d")
    assert {e.client for e in dealt if e.split == "train"} == {0, 1, 2}


def test_another_seed_or_name_splits_differently():
    examples = examples_of([40])
    first = split_per_class(examples, NAMES, "d")
    assert first != split_per_class(examples, NAMES, "d", seed=1)
    assert first != split_per_class(examples, NAMES, "other")


def test_holding_out_takes_from_training_alone():
    examples = [e._replace(split="test" if int(e.name.split("/")[2]) < 5 else "train") for e in examples_of([15])]
    assert hold_out(examples, NAMES, "d", 0.0) == examples
    held = hold_out(examples, NAMES, "d", 0.2)
    assert Counter(e.split for e in held) == {"train": 8, "validation": 2, "test": 5}


def test_coops_file_gives_paths_labels_and_names(tmp_path):
    path = tmp_path / "split_zhou_X.json"
    path.write_text(
        json.dumps(
            {"train": [["b/1.jpg", 1, "big_cat"]], "val": [["a/2.jpg", 0, "ant"]], "test": [["a/3.jpg", 0, "ant"]]}
        )
    )
    names, examples = read_zhou_split(path)
    assert names == ("ant", "big cat")
    assert [(e.name, e.label, e.split) for e in examples] == [
        ("b/1.jpg", 1, "train"), ("a/2.jpg", 0, "validation"), ("a/3.jpg", 0, "test"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ('{"train": []}', "is damaged.*KeyError"),
        ('{"train": [["a", 0]], "val": [], "test": []}', "is damaged"),
        ('{"train": [["a", 0, "x"], ["b", 0, "y"]], "val": [], "test": []}', "label 0 is both 'x' and 'y'"),
        ('{"train": [["a", 1, "x"]], "val": [], "test": []}', "must run from 0 to 0"),
    ],
)
def test_a_damaged_file_of_coop_is_named(tmp_path, content, message):
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_zhou_split(tmp_path / "s.json")


def test_fractions_must_leave_something():
    with pytest.raises(ConfigError, match=r"must be < 1, got 0.5 \+ 0.5"):
        check_fractions(0.5, 0.5)
    with pytest.raises(ConfigError, match=r"test_fraction must lie in \[0, 1\]"):
        check_fractions(0.5, -0.5)
