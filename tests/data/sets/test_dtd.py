import numpy as np
import pytest

from helpers.layouts import image, images, is_color, names
from hushprompt.data.sets.dtd import DTD
from hushprompt.errors import DataError

FOLDERS = sorted(["banded", "polka-dotted", *(f"texture_{index:02d}" for index in range(45))])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    home = tmp_path_factory.mktemp("data") / "dtd" / "dtd"  # as torchvision leaves it
    images(home / "images", FOLDERS, 4)
    (home / "labels").mkdir()
    for split, numbers in (("train1", (1, 2)), ("val1", (3,)), ("test1", (4,))):
        lines = [f"{name}/image_{number:04d}.jpg" for name in FOLDERS for number in numbers]
        (home / "labels" / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return home.parent.parent


def test_the_authors_first_split_follows_their_lists(root):
    dataset = DTD(root=str(root), split="official").load()
    assert dataset.class_names[:2] == ("banded", "polka-dotted")
    assert [len(split) for split in dataset.splits.values()] == [94, 47, 47]
    assert names(dataset.splits["validation"])[1] == "polka-dotted/image_0003.jpg"
    assert is_color(dataset.splits["validation"].read(np.array([1]))[0], 1 * 4 + 2)
    assert dataset.split_checksum[:16] == "8284e7b8e177ca90"


def test_coops_sizes_are_the_default_and_pinned(root):
    dataset = DTD(root=str(root)).load()
    assert [len(split) for split in dataset.splits.values()] == [94, 47, 47]
    assert dataset.split_checksum[:16] == "6e608ab7cdf7bbae"


def test_a_damaged_list_is_named(tmp_path):
    image(tmp_path / "images" / "a" / "1.jpg")
    with pytest.raises(DataError, match=r"labels/train1\.txt is missing"):
        DTD(root=str(tmp_path), split="official").load()
    (tmp_path / "labels").mkdir()
    for file in ("train1.txt", "val1.txt", "test1.txt"):
        (tmp_path / "labels" / file).write_text("a/1.jpg\n")
    with pytest.raises(DataError, match="must list 47 classes, found 1"):
        DTD(root=str(tmp_path), split="official").load()
