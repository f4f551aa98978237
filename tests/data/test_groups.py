"""Which examples belong together: by a column, by the path, or because they are copies."""

import shutil

import numpy as np
import pytest

import hushprompt as hp
from helpers.layouts import image, images, names
from hushprompt.data.doctor import Subject, quick
from hushprompt.data.groups import with_groups
from hushprompt.data.partitions.base import ClientShard, Partition
from hushprompt.data.partitions.by_holder import ByClient
from hushprompt.data.readers.features import FeatureFile
from hushprompt.data.readers.folder import Folder
from hushprompt.data.readers.table import Table
from hushprompt.data.sets.toy import ToyData
from hushprompt.errors import ConfigError, DataError


def table(folder, header, rows):
    """Write a table of 24 pictures, which are there."""
    for number in range(24):
        image(folder / f"{number}.png", number)
    (folder / "t.csv").write_text("\n".join([header, *rows]) + "\n")
    return str(folder / "t.csv")


def rows_of(groups, splits=None):
    """Return rows of path, label, group and split."""
    return [
        f"{n}.png,{n % 2},{group}" + (f",{splits[n]}" if splits else "") for n, group in enumerate(groups)
    ]  # fmt: skip


def by_name(dataset):
    """Return the split and the group's name of each example."""
    return {
        name: (split, dataset.group_names[group])
        for split, of in dataset.splits.items()
        for name, group in zip(names(of), of.groups.tolist(), strict=True)
    }


def told(dataset, partition=None):
    return {one.kind: one for one in quick(Subject(dataset=dataset, partition=partition))}


def test_a_column_names_groups_and_a_split_keeps_each_together(tmp_path):
    dataset = Table(file=table(tmp_path, "path,label,group", rows_of([f"P{n // 3}" for n in range(24)]))).load()
    found = by_name(dataset)
    assert {found[f"{n}.png"][1] for n in range(3)} == {"P0"}
    splits = [{found[f"{n}.png"][0] for n in range(24) if n // 3 == number} for number in range(8)]
    assert all(len(where) == 1 for where in splits)
    assert set().union(*splits) == {"train", "validation", "test"}
    assert "groups_across_splits" not in told(dataset)


def test_groups_of_one_are_split_as_examples_are(tmp_path):
    file = table(tmp_path, "path,label,group", rows_of(range(24)))
    alone = Table(file=file).load()
    plain = Table(file=file, group_column="").load()
    assert plain.splits["train"].groups is None
    assert plain.split_checksum == alone.split_checksum


def test_a_pattern_finds_the_group_in_a_path(tmp_path):
    for number in range(12):
        image(tmp_path / ("cat", "dog")[number % 2] / f"patient{number // 2}_{number}.png", number)
    dataset = Folder(root=str(tmp_path), group_pattern=r"patient(\d+)_").load()
    assert dataset.group_names == tuple("012345")
    assert all(name.split("patient")[1].startswith(f"{group}_") for name, (_, group) in by_name(dataset).items())
    assert Folder(root=str(tmp_path), group_pattern=r"patient\d+").load().group_names[0] == "patient0"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"group_pattern": r"case(\d+)"}, DataError, "finds no group in"),
        ({"group_pattern": r"case(\d+"}, ConfigError, "no regular expression"),
    ],
)
def test_a_pattern_that_does_not_fit_is_refused(tmp_path, settings, error, message):
    images(tmp_path, ["cat", "dog"], 4)
    with pytest.raises(error, match=message):
        Folder(root=str(tmp_path), **settings).load()


def test_groups_are_named_once_and_for_all_examples(tmp_path):
    file = table(tmp_path, "path,label,group", rows_of([*range(23), ""]))
    with pytest.raises(DataError, match="has no group, others do"):
        Table(file=file).load()
    with pytest.raises(DataError, match="Leave one out"):
        Table(file=table(tmp_path, "path,label,group", rows_of(range(24))), group_pattern=r"\d+").load()
    assert Table(file=file, group_column="", group_pattern=r"\d+").load().group_names == tuple(map(str, range(24)))


def test_the_doctor_tells_of_a_person_in_training_and_in_test(tmp_path):
    splits = ["train"] * 16 + ["test"] * 8
    file = table(tmp_path, "path,label,group,split", rows_of([f"P{n % 17}" for n in range(24)], splits))
    found = told(Table(file=file).load())["groups_across_splits"]
    assert (found.count, found.paths, found.is_refused) == (7, ("P0", "P1", "P2"), False)


def test_the_doctor_tells_of_a_person_at_two_clients(tmp_path):
    rows = [f"{row},{('north', 'south')[n // 12]}" for n, row in enumerate(rows_of([f"P{n // 5}" for n in range(24)]))]
    dataset = Table(file=table(tmp_path, "path,label,group,client", rows), validation_fraction=0.0).load()
    found = told(dataset)
    own = ByClient().partition(dataset, np.random.default_rng(0))
    assert told(dataset, own).get("groups_across_clients") == found.get("groups_across_clients")
    halves = tuple(ClientShard(i, (0,), {"train": np.arange(len(dataset.splits["train"]))}) for i in range(2))
    shared = told(dataset, Partition(halves))["groups_across_clients"]
    assert shared.count == len(np.unique(dataset.splits["train"].groups))


def test_clients_count_their_groups_in_order(tmp_path):
    dataset = Table(file=table(tmp_path, "path,label,group", rows_of([f"P{n % 5}" for n in range(24)]))).load()
    index = np.array([4, 1, 3])[: len(dataset.splits["train"])]
    (client,) = with_groups(Partition((ClientShard(0, (0,), {"train": index}),)), dataset).clients
    _, first = np.unique(client.groups, return_index=True)
    assert client.groups[np.sort(first)].tolist() == list(range(client.size))
    plain = Table(file=table(tmp_path, "path,label,group", rows_of(range(24))), group_column="").load()
    with pytest.raises(ConfigError, match="does not say which examples belong together"):
        with_groups(Partition((ClientShard(0, (0,), {"train": index}),)), plain)


def test_copies_are_one_group_with_one_option(tmp_path):
    images(tmp_path, ["cat", "dog"], 8)
    for number in range(5):  # by chance some of these copies would be in another split than the original
        shutil.copy(next((tmp_path / "cat").glob(f"*{number + 1}.jpg")), tmp_path / "cat" / f"copy{number}.jpg")
    with pytest.raises(DataError, match="in two splits"):
        Folder(root=str(tmp_path)).load()
    dataset = Folder(root=str(tmp_path), duplicates="group").load()
    assert not told(dataset).keys() & {"copies_across_splits", "copies_in_training"}
    groups = np.concatenate([split.groups for split in dataset.splits.values()])
    assert len(groups) == 21
    assert len(np.unique(groups)) == 16
    plain = Folder(root=str(tmp_path), duplicates="allow").load()
    assert {"copies_across_splits", "copies_in_training"} <= told(plain).keys()


def test_a_file_that_is_listed_twice_is_one_group(tmp_path):
    """Each picture in training, and by another spelling of its path in test."""
    table(tmp_path, "path,label", [])
    rows = [f"{dots}{n}.png,{n % 2},{split}" for n in range(4) for dots, split in (("", "train"), ("./", "test"))]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split", *rows, "./0.png,0,train"]) + "\n")
    with pytest.raises(DataError, match=r"lists \./0\.png twice"):
        Table(file=str(tmp_path / "t.csv"), duplicates="group").load()
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split", *rows, "x/../0.png,0,train"]) + "\n")
    (tmp_path / "x").mkdir()
    with pytest.raises(DataError, match="the other time as"):
        Table(file=str(tmp_path / "t.csv"), duplicates="allow").load()
    dataset = Table(file=str(tmp_path / "t.csv"), duplicates="group").load()
    assert dataset.splits["train"].groups.tolist() == [0, 1, 2, 3, 0]
    assert told(dataset)["copies_across_splits"].is_refused is False


def test_copies_join_the_groups_that_they_are_in(tmp_path):
    rows = rows_of([f"P{n // 3}" for n in range(24)])
    file = table(tmp_path, "path,label,group", rows)
    shutil.copy(tmp_path / "0.png", tmp_path / "23.png")  # so P0 and P7 are one
    joined = Table(file=file, duplicates="group").load()
    assert joined.group_names == tuple(f"P{n}" for n in range(7))
    assert by_name(joined)["21.png"][1] == "P0"


def test_features_that_are_exported_keep_their_groups(tmp_path):
    values = {"backbone": "toy", "data": {"name": "toy", "group_size": 3}, "runtime": {"cache_dir": str(tmp_path)}}
    hp.export_features(out=tmp_path / "f.npz", progress=False, partition={"num_clients": 2}, **values)
    exported, dataset = FeatureFile(file=str(tmp_path / "f.npz")).load(), ToyData(group_size=3).load()
    assert exported.group_names == tuple(sorted(dataset.group_names))
    for name, split in exported.splits.items():
        ours = [dataset.group_names[group] for group in dataset.splits[name].groups]
        assert [exported.group_names[group] for group in split.groups] == ours
