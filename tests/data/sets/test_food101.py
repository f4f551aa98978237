import json

import numpy as np
import pytest

from helpers.layouts import image, images, is_color, names
from hushprompt.data.sets.food101 import Food101
from hushprompt.errors import DataError

FOLDERS = sorted(["apple_pie", "waffles", *(f"dish_{index:02d}" for index in range(99))])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    home = tmp_path_factory.mktemp("data") / "food-101"
    images(home / "images", FOLDERS, 4)
    (home / "meta").mkdir()
    for split, numbers in (("train", (2, 1, 4)), ("test", (3,))):
        listed = {name: [f"{name}/image_{number:04d}" for number in numbers] for name in reversed(FOLDERS)}
        (home / "meta" / f"{split}.json").write_text(json.dumps(listed))
    return home.parent


def test_the_authors_split_follows_their_lists(root):
    dataset = Food101(root=str(root), split="official").load()
    assert len(dataset.class_names) == 101
    assert (dataset.class_names[0], dataset.class_names[-1]) == ("apple pie", "waffles")
    assert list(dataset.splits) == ["train", "test"]
    assert names(dataset.splits["train"])[:3] == [f"apple_pie/image_000{number}.jpg" for number in (2, 1, 4)]
    assert dataset.splits["test"].labels.tolist() == list(range(101))
    assert is_color(dataset.splits["test"].read(np.array([100]))[0], 100 * 4 + 2)
    assert dataset.split_checksum[:16] == "b02326f5c1e6fac5"


def test_coops_sizes_are_the_default_and_pinned(root):
    dataset = Food101(root=str(root)).load()
    assert [len(split) for split in dataset.splits.values()] == [202, 101, 101]
    assert dataset.split_checksum[:16] == "ca1293d28d4ab663"


def test_a_damaged_list_is_named(tmp_path):
    image(tmp_path / "images" / "a" / "1.jpg")
    with pytest.raises(DataError, match=r"meta/train\.json is missing or damaged"):
        Food101(root=str(tmp_path), split="official").load()
    (tmp_path / "meta").mkdir()
    for split in ("train", "test"):
        (tmp_path / "meta" / f"{split}.json").write_text('{"a": ["a/1"]}')
    with pytest.raises(DataError, match="must list the same 101 classes twice"):
        Food101(root=str(tmp_path), split="official").load()
