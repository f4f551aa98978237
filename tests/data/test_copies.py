import dataclasses

import numpy as np
import pytest

from helpers.layouts import encoded, image, images, tar
from hushprompt.data.copies import find_copies, in_training, refuse_across_clients
from hushprompt.data.partitions.by_class import IID
from hushprompt.data.readers.folder import Folder
from hushprompt.data.readers.table import Table
from hushprompt.data.readers.webdataset import WebDataset
from hushprompt.data.sets.toy import ToyData
from hushprompt.errors import DataError


def groups(dataset):
    return [sorted(dataset.splits[name].read.source.describe(int(dataset.splits[name].read.rows[index]))[-5:]
            for name, index in group) for group in dataset.copies]  # fmt: skip


@pytest.fixture
def parts(tmp_path):
    """A folder of train and test, without copies."""
    for number, place in enumerate(("train/cat", "train/dog", "test/cat", "test/dog")):
        for index in range(3):
            image(tmp_path / place / f"{index}.png", 10 * number + index)
    return tmp_path


def test_a_copy_in_train_and_test_is_refused_and_named(parts):
    image(parts / "test" / "cat" / "new.png", 1)
    with pytest.raises(
        DataError, match=r'two splits.*\(1: .*train/cat/1\.png = .*test/cat/new\.png\).*data\.duplicates = "group"'
    ):
        Folder(root=str(parts)).load()
    dataset = Folder(root=str(parts), duplicates="allow").load()
    assert groups(dataset) == [["1.png", "w.png"]]


def test_a_hard_link_is_a_copy(parts):
    (parts / "test" / "cat" / "new.png").hardlink_to(parts / "train" / "cat" / "1.png")
    with pytest.raises(DataError, match="two splits"):
        Folder(root=str(parts)).load()


def test_copies_in_one_training_set_are_found_and_not_refused(parts):
    for name in ("8.png", "9.png"):
        image(parts / "train" / "dog" / name, 0)
    dataset = Folder(root=str(parts)).load()
    assert groups(dataset) == [["0.png", "8.png", "9.png"]]
    assert in_training(dataset, dataset.copies, None) == {0: {3: 1}}


def test_files_of_equal_size_are_no_copies(tmp_path):
    for number in range(6):
        path = tmp_path / "ab"[number % 2] / f"{number}.bmp"
        path.parent.mkdir(exist_ok=True)
        content = bytearray(20_000)
        content[number * 3000] = 1  # some differ at the start, some in the middle, some at the end
        path.write_bytes(content)
    assert Folder(root=str(tmp_path)).load().copies == ()


def test_copies_at_two_clients_are_refused_by_any_partition(parts):
    for number in range(3):
        image(parts / "train" / "cat" / f"more{number}.png", 1)
    dataset = Folder(root=str(parts)).load()
    partition = IID(num_clients=2).partition(dataset, np.random.default_rng(0))
    with pytest.raises(DataError, match=r"at two clients.*data\.duplicates"):
        refuse_across_clients(dataset, partition)
    refuse_across_clients(dataclasses.replace(dataset, duplicates="allow"), partition)
    alone = IID(num_clients=1).partition(dataset, np.random.default_rng(0))
    refuse_across_clients(dataset, alone)


@pytest.mark.parametrize("path", ["./a/1.png", "a/../a/1.png", "a//1.png"])
def test_a_path_that_is_spelled_otherwise_is_the_same_path(tmp_path, path):
    images(tmp_path, ["a", "b"], 2)
    image(tmp_path / "a" / "1.png", 9)
    (tmp_path / "t.csv").write_text(f"path,label,split\na/1.png,a,train\n{path},a,test\n")
    with pytest.raises(DataError, match=r"twice, the other time as a/1\.png"):
        Table(file=str(tmp_path / "t.csv")).load()


def test_a_table_with_links_to_one_file_has_copies(tmp_path):
    for number in range(4):
        image(tmp_path / f"{number}.png", number)
    (tmp_path / "link.png").symlink_to("0.png")
    rows = ["0.png,a,train", "1.png,b,train", "2.png,a,test", "link.png,a,test"]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split", *rows]))
    with pytest.raises(DataError, match=r"0\.png = .*link\.png"):
        Table(file=str(tmp_path / "t.csv")).load()


def test_copies_inside_tars_are_found(tmp_path):
    for shard, numbers in (("train", (0, 1, 2, 1)), ("test", (4, 5))):
        members = {}
        for place, number in enumerate(numbers):
            members |= {f"{place}.cls": str(number % 2).encode(), f"{place}.png": encoded(number)}
        tar(tmp_path / f"{shard}.tar", members)
    dataset = WebDataset(root=str(tmp_path)).load()
    assert groups(dataset) == [["1.png", "3.png"]]


def test_copies_in_a_hugging_face_folder_are_found(tmp_path):
    datasets = pytest.importorskip("datasets")
    from hushprompt.data.readers.huggingface import HuggingFace

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})

    def part(numbers):
        cells = [{"bytes": encoded(number), "path": None} for number in numbers]
        return datasets.Dataset.from_dict({"image": cells, "label": [n % 2 for n in numbers]}, features=features)

    datasets.DatasetDict({"train": part([0, 1, 2, 3, 2]), "test": part([4, 5])}).save_to_disk(str(tmp_path / "hf"))
    dataset = HuggingFace(root=str(tmp_path / "hf")).load()
    assert dataset.copies == ((("train", 2), ("train", 4)),)
    datasets.DatasetDict({"train": part([0, 1]), "test": part([4, 1])}).save_to_disk(str(tmp_path / "hf2"))
    with pytest.raises(DataError, match=r"hf2 train\[1\] = .*hf2 test\[1\]"):
        HuggingFace(root=str(tmp_path / "hf2")).load()


def test_data_in_memory_is_compared_by_its_pixels():
    dataset = ToyData(num_classes=2, num_train=4).load()
    assert find_copies(dataset.splits) == ()
    twice = dataclasses.replace(dataset, splits={**dataset.splits, "test": dataset.splits["train"]})
    assert len(find_copies(twice.splits)) == 8
