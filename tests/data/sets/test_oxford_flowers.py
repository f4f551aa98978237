import json

import numpy as np
import pytest
from scipy.io import savemat

from helpers.layouts import image, is_color, names
from hushprompt.data.sets.oxford_flowers import NAMES, OxfordFlowers
from hushprompt.errors import DataError

COUNT = 102 * 4


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    home = tmp_path_factory.mktemp("data") / "oxford_flowers"
    labels = np.tile(np.arange(1, 103), 4)
    for number in range(COUNT):
        image(home / "jpg" / f"image_{number + 1:05d}.jpg", number)
    savemat(home / "imagelabels.mat", {"labels": labels[None].astype(np.uint8)})
    ids = np.arange(1, COUNT + 1, dtype=np.uint16)[None]
    savemat(home / "setid.mat", {"trnid": ids[:, :102], "valid": ids[:, 102:204], "tstid": ids[:, 204:]})
    return home.parent


def test_there_are_102_different_names():
    assert len(set(NAMES)) == len(NAMES) == 102
    assert (NAMES[0], NAMES[20], NAMES[101]) == ("pink primrose", "fire lily", "blackberry lily")


def test_labels_start_at_one_in_the_file_and_at_zero_here(root):
    dataset = OxfordFlowers(root=str(root)).load()
    assert dataset.class_names == NAMES
    for split in dataset.splits.values():
        assert [(int(name[6:11]) - 1) % 102 for name in names(split)] == split.labels.tolist()
    number = int(names(dataset.splits["test"])[5][6:11]) - 1
    assert is_color(dataset.splits["test"].read(np.array([5]))[0], number)


def test_both_splits_are_pinned(root):
    coop, official = OxfordFlowers(root=str(root)).load(), OxfordFlowers(root=str(root), split="official").load()
    assert coop.split_checksum[:16] == "a1d791011cd9fe9a"
    assert official.split_checksum[:16] == "e8f06bf8692f1ce4"
    assert [len(split) for split in official.splits.values()] == [102, 102, 204]
    assert names(official.splits["validation"])[0] == "image_00103.jpg"
    assert official.split_source == "the authors' setid.mat"


def test_coops_split_and_other_names_are_honored(root, tmp_path):
    home = tmp_path / "flowers-102"
    home.mkdir()
    for name in ("jpg", "imagelabels.mat"):
        (home / name).symlink_to(root / "oxford_flowers" / name)
    (home / "cat_to_name.json").write_text(json.dumps({str(label + 1): f"flower {label}" for label in range(102)}))
    assert OxfordFlowers(root=str(tmp_path)).load().class_names[3] == "flower 3"
    with pytest.raises(DataError, match=r"setid\.mat is missing"):
        OxfordFlowers(root=str(tmp_path), split="official").load()
    split = {
        "train": [["image_00002.jpg", 1, "b"], ["image_00001.jpg", 0, "a"]],
        "val": [],
        "test": [["image_00103.jpg", 0, "a"]],
    }
    (home / "split_zhou_OxfordFlowers.json").write_text(json.dumps(split))
    dataset = OxfordFlowers(root=str(tmp_path)).load()
    assert dataset.class_names == ("a", "b")
    assert is_color(dataset.splits["train"].read(np.array([0]))[0], 1)


def test_a_damaged_file_is_named(tmp_path):
    image(tmp_path / "jpg" / "image_00001.jpg")
    (tmp_path / "imagelabels.mat").write_bytes(b"no matlab")
    with pytest.raises(DataError, match=r"imagelabels\.mat is damaged"):
        OxfordFlowers(root=str(tmp_path)).load()
    savemat(tmp_path / "imagelabels.mat", {"labels": np.array([[1, 2]])})
    with pytest.raises(DataError, match="must have labels from 1 to 102"):
        OxfordFlowers(root=str(tmp_path)).load()
