import json

import numpy as np
import pytest

from helpers.layouts import image, images, is_color, names
from hushprompt.data.sets.caltech101 import Caltech101
from hushprompt.errors import DataError

FOLDERS = sorted(["BACKGROUND_Google", "Faces", "Faces_easy", "Leopards", "Motorbikes", "airplanes", "wild_cat",
                  *(f"thing_{index:02d}" for index in range(95))])  # fmt: skip
KEPT = [name for name in FOLDERS if name not in ("BACKGROUND_Google", "Faces_easy")]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    images(root / "caltech-101" / "101_ObjectCategories", FOLDERS, 4)
    return root


def test_a_hundred_classes_in_folder_order_with_coops_names(root):
    dataset = Caltech101(root=str(root)).load()
    assert len(dataset.class_names) == 100
    assert dataset.class_names[:5] == ("face", "leopard", "motorbike", "airplane", "thing 00")
    assert dataset.class_names[-1] == "wild cat"
    assert dataset.license == "CC-BY-4.0"


def test_every_image_is_in_one_split_with_its_own_label_and_pixels(root):
    dataset = Caltech101(root=str(root)).load()
    found = {split: names(part) for split, part in dataset.splits.items()}
    assert {split: len(part) for split, part in found.items()} == {"train": 200, "validation": 100, "test": 100}
    assert len({name for part in found.values() for name in part}) == 400
    for part in dataset.splits.values():
        assert [KEPT[label] for label in part.labels] == [name.split("/")[0] for name in names(part)]
    first = names(dataset.splits["train"])[0]  # Faces/image_000?.jpg
    number = FOLDERS.index("Faces") * 4 + int(first[-5]) - 1
    assert is_color(dataset.splits["train"].read(np.array([0]))[0], number)


def test_the_documented_split_is_pinned(root):
    dataset = Caltech101(root=str(root / "caltech-101")).load()
    assert dataset.split_checksum[:16] == "9715c7f09567d8f7"
    assert dataset.split_source.startswith("50/20/30 per class")


def test_coops_split_is_honored_where_it_lies(tmp_path):
    home = tmp_path / "caltech-101"
    for number, name in enumerate(("ant/a.jpg", "ant/b.jpg", "bee/c.jpg")):
        image(home / "101_ObjectCategories" / name, number)
    split = {
        "train": [["bee/c.jpg", 1, "bee"], ["ant/b.jpg", 0, "ant"]], "val": [], "test": [["ant/a.jpg", 0, "ant"]],
    }  # fmt: skip
    (home / "split_zhou_Caltech101.json").write_text(json.dumps(split))
    dataset = Caltech101(root=str(tmp_path)).load()
    assert dataset.class_names == ("ant", "bee")
    assert dataset.split_source == "split_zhou_Caltech101.json"
    assert dataset.splits["train"].labels.tolist() == [1, 0]
    assert is_color(dataset.splits["train"].read(np.array([1]))[0], 1)
    assert is_color(dataset.splits["test"].read(np.array([0]))[0], 0)


def test_torchvisions_folder_is_found_too(root, tmp_path):
    (tmp_path / "caltech101").symlink_to(root / "caltech-101")
    assert len(Caltech101(root=str(tmp_path)).load().class_names) == 100


def test_missing_and_incomplete_data_are_told_apart(tmp_path):
    with pytest.raises(DataError, match=r"caltech-101/101_ObjectCategories is missing(?s:.)*data fetch caltech101"):
        Caltech101(root=str(tmp_path)).load()
    images(tmp_path / "caltech101" / "101_ObjectCategories", ["a", "b"], 1)
    with pytest.raises(DataError, match="must have 100 class folders, found 2"):
        Caltech101(root=str(tmp_path)).load()
