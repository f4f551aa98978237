import os

import numpy as np
import pytest

from helpers.layouts import image, is_color
from hushprompt.data.decoding import Media
from hushprompt.data.listing import About, Example, Files, Listing, build, find_home, split_checksum
from hushprompt.errors import DataError

ABOUT = About(name="d", title="D", citation="c", license="l", layout="d/x", how_to_get="1. Ask.", folders=("d",))


def listing(count=4):
    splits = ("train", "train", "test", "validation")
    examples = [Example(f"{index}.png", index % 2, splits[index % 4]) for index in range(count)]
    return Listing(class_names=("a", "b"), examples=examples, split_source="s")


@pytest.fixture
def folder(tmp_path):
    for index in range(4):
        image(tmp_path / f"{index}.png", index)
    return tmp_path


def load(folder, on_unreadable="error"):
    rows = listing()
    return build(ABOUT, rows, Files(folder, [e.name for e in rows.examples]), Media(), on_unreadable)


def test_splits_keep_the_order_and_read_only_what_is_asked(folder):
    dataset = load(folder)
    train = dataset.splits["train"]
    assert list(dataset.splits) == ["train", "validation", "test"]
    assert train.labels.tolist() == [0, 1]
    assert train.clients is None
    assert is_color(train.read(np.array([1]))[0], 1)
    assert is_color(dataset.splits["test"].read(np.array([0]))[0], 2)


def test_a_changed_file_changes_only_its_splits_fingerprint(folder):
    before = load(folder)
    image(folder / "1.png", 9)
    os.utime(folder / "1.png", ns=(5, 5))
    after = load(folder)
    assert before.splits["train"].fingerprint != after.splits["train"].fingerprint
    assert before.splits["test"].fingerprint == after.splits["test"].fingerprint
    assert before.split_checksum == after.split_checksum


def test_the_fingerprint_depends_on_how_sounds_are_resampled(folder):
    rows = listing()
    source = Files(folder, [e.name for e in rows.examples])
    prints = {
        build(ABOUT, rows, source, Media(modality="audio", sampling_rate=rate), "error").splits["train"].fingerprint
        for rate in (8000, 16000)
    }
    assert len(prints) == 2


def test_a_damaged_image_stops_by_default_with_its_path(folder):
    (folder / "1.png").write_bytes(b"not an image")
    dataset = load(folder)
    with pytest.raises(DataError, match=r"1\.png cannot be read.*Replace it or take it out"):
        dataset.splits["train"].read(np.array([1]))


def test_damaged_and_missing_images_can_be_skipped_but_never_silently(folder, caplog):
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:40])
    (folder / "3.png").unlink()
    dataset = load(folder, "skip")
    assert dataset.num_skipped == 2
    assert dataset.splits["train"].labels.tolist() == [0]
    assert "validation" not in dataset.splits
    assert "2 of 4 examples cannot be read and are left out" in caplog.text
    assert str(folder / "1.png") in caplog.text
    assert str(folder / "3.png") in caplog.text
    assert is_color(dataset.splits["train"].read(np.array([0]))[0], 0)


def test_a_missing_image_is_named_at_load(folder):
    (folder / "3.png").unlink()
    with pytest.raises(DataError, match=r"3\.png is missing"):
        load(folder)


def test_the_checksum_is_of_the_split_whatever_the_order():
    examples = listing(8).examples
    assert split_checksum(examples) == split_checksum(examples[::-1])
    assert split_checksum(examples) != split_checksum([examples[0]._replace(split="test"), *examples[1:]])
    assert split_checksum(examples) != split_checksum([examples[0]._replace(label=1), *examples[1:]])


def test_the_home_is_the_root_or_a_folder_in_it(tmp_path):
    about = About(name="d", title="D", citation="", license="", folders=("one", "two"), needs=("x",), layout="tree",
                  torchvision="D")  # fmt: skip
    with pytest.raises(DataError, match=r"D: .*one/x is missing(?s:.)*tree(?s:.)*hushprompt data fetch d --root "):
        find_home(tmp_path, about)
    (tmp_path / "two" / "x").mkdir(parents=True)
    assert find_home(tmp_path, about) == tmp_path / "two"
    assert find_home(tmp_path / "two", about) == tmp_path / "two"
