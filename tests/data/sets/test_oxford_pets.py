import json

import numpy as np
import pytest

from helpers.layouts import image, is_color, names
from hushprompt.data.sets.oxford_pets import OxfordPets
from hushprompt.errors import DataError

BREEDS = ["Abyssinian", "american_bulldog", "Egyptian_Mau", *(f"breed_{index:02d}" for index in range(34))]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    home = tmp_path_factory.mktemp("data") / "oxford_pets"
    lines = {"trainval": [], "test": []}
    for label, breed in enumerate(BREEDS):
        for number in range(7):
            image(home / "images" / f"{breed}_{number}.jpg", label * 7 + number)
            split = "trainval" if number < 5 else "test"
            lines[split].append(f"{breed}_{number} {label + 1} {1 + breed.islower()} 3")
    (home / "annotations").mkdir()
    for split, text in lines.items():
        (home / "annotations" / f"{split}.txt").write_text("\n".join(text) + "\n")
    return home.parent


def test_labels_names_and_pixels_come_from_the_authors_lists(root):
    dataset = OxfordPets(root=str(root)).load()
    assert dataset.class_names[:4] == ("abyssinian", "american bulldog", "egyptian mau", "breed 00")
    assert len(dataset.class_names) == 37
    test = dataset.splits["test"]
    assert names(test)[:3] == ["Abyssinian_5.jpg", "Abyssinian_6.jpg", "american_bulldog_5.jpg"]
    assert test.labels.tolist() == [label for label in range(37) for _ in range(2)]
    assert is_color(test.read(np.array([2]))[0], 12)


def test_a_fifth_of_trainval_is_for_validation_and_the_split_is_pinned(root):
    dataset = OxfordPets(root=str(root)).load()
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 148, "validation": 37, "test": 74}
    assert dataset.split_checksum[:16] == "1a2596059c13d864"


def test_coops_split_is_honored(root):
    path = root / "oxford_pets" / "split_zhou_OxfordPets.json"
    entries = [[f"{breed}_0.jpg", label, breed.lower()] for label, breed in enumerate(BREEDS)]
    path.write_text(json.dumps({"train": entries, "val": [], "test": entries[:1]}))
    try:
        dataset = OxfordPets(root=str(root)).load()
    finally:
        path.unlink()
    assert dataset.class_names[2] == "egyptian mau"
    assert len(dataset.splits["train"]) == 37
    assert is_color(dataset.splits["train"].read(np.array([2]))[0], 14)


def test_a_damaged_list_is_named(tmp_path):
    image(tmp_path / "images" / "a_1.jpg")
    (tmp_path / "annotations").mkdir()
    with pytest.raises(DataError, match=r"trainval\.txt is missing or damaged"):
        OxfordPets(root=str(tmp_path)).load()
    for split in ("trainval", "test"):
        (tmp_path / "annotations" / f"{split}.txt").write_text("a_1 1 1 1\n")
    with pytest.raises(DataError, match="must list 37 breeds, found 1"):
        OxfordPets(root=str(tmp_path)).load()
    (tmp_path / "annotations" / "test.txt").write_text("a_1 one\n")
    with pytest.raises(DataError, match=r"test\.txt is missing or damaged"):
        OxfordPets(root=str(tmp_path)).load()
