import os

import numpy as np
import pytest

from helpers.layouts import image, images, is_color, names, wav
from hushprompt.data.readers.folder import Folder
from hushprompt.errors import ConfigError, DataError


def test_class_folders_are_split_by_the_documented_rule(tmp_path):
    images(tmp_path / "mine", ["red_fox", "cat"], 10)
    dataset = Folder(root=str(tmp_path / "mine")).load()
    assert dataset.name == "mine"
    assert dataset.class_names == ("cat", "red fox")
    assert [len(split) for split in dataset.splits.values()] == [10, 4, 6]
    train = dataset.splits["train"]
    assert [name.startswith("red_fox") for name in names(train)] == (train.labels == 1).tolist()
    row = names(train).index(next(name for name in names(train) if name.startswith("cat")))
    assert is_color(train.read(np.array([row]))[0], 10 + int(names(train)[row][10:14]) - 1)
    assert dataset.split_checksum[:16] == "172746e5ff2280a2"


def test_the_split_does_not_depend_on_where_the_folder_lies_but_on_its_seed(tmp_path):
    for place in ("one", "two"):
        images(tmp_path / place, ["a", "b"], 10)
    first, second = (Folder(root=str(tmp_path / place)).load() for place in ("one", "two"))
    assert first.split_checksum == second.split_checksum
    assert first.split_checksum != Folder(root=str(tmp_path / "one"), split_seed=1).load().split_checksum


def test_train_and_test_folders_are_the_splits(tmp_path):
    for number, place in enumerate(("train/a", "train/b", "val/a", "test/b")):
        image(tmp_path / place / "deep" / "x.PNG", number)
    dataset = Folder(root=str(tmp_path)).load()
    assert {name: split.labels.tolist() for name, split in dataset.splits.items()} == {
        "train": [0, 1], "validation": [0], "test": [1],
    }  # fmt: skip
    assert is_color(dataset.splits["test"].read(np.array([0]))[0], 3)
    assert dataset.split_source == "the data's own"


def test_a_class_called_train_is_a_class(tmp_path):
    images(tmp_path, ["bus", "train"], 4)
    assert Folder(root=str(tmp_path)).load().class_names == ("bus", "train")


def test_the_classes_can_be_ordered_and_renamed(tmp_path):
    images(tmp_path / "d", ["n01", "n02", "wild_cat"], 4)
    wanted = ("wild cat", "n02=dog", "n01=house cat")
    assert Folder(root=str(tmp_path / "d"), classes=wanted).load().class_names == ("wild cat", "dog", "house cat")
    (tmp_path / "classes.txt").write_text("n02\n\nn01\nwild_cat\n")
    dataset = Folder(root=str(tmp_path / "d"), classes_file=str(tmp_path / "classes.txt")).load()
    assert dataset.class_names == ("n02", "n01", "wild cat")
    assert {name[:3] for name, label in zip(names(dataset.splits["train"]), dataset.splits["train"].labels, strict=True)
            if label == 0} == {"n02"}  # fmt: skip
    with pytest.raises(DataError, match=r"classes that are not in data\.classes: n02, wild_cat"):
        Folder(root=str(tmp_path / "d"), classes=("n01",)).load()
    with pytest.raises(DataError, match=r"classes_file .* cannot be read"):
        Folder(root=str(tmp_path / "d"), classes_file="nowhere.txt").load()


def test_a_folder_of_sounds_is_a_data_set_of_sounds(tmp_path):
    pytest.importorskip("soundfile")
    for place, label in enumerate(("hum", "buzz")):
        for number in range(4):
            wav(tmp_path / label / f"{number}.wav", frequency=440 + 50 * number + 10 * place, rate=8000)
    dataset = Folder(root=str(tmp_path), sampling_rate=16000).load()
    assert (dataset.modality, dataset.sampling_rate) == ("audio", 16000)
    assert dataset.splits["train"].read(np.array([0]))[0].shape == (1600,)


def test_other_files_are_no_examples_and_are_told(tmp_path):
    images(tmp_path, ["a", "b"], 4)
    (tmp_path / "a" / "notes.txt").write_text("x")
    for stray in (".DS_Store", "a/._image_0001.jpg", "b/2.jpg.crdownload", "Thumbs.db"):
        (tmp_path / stray).write_text("x")
    image(tmp_path / "a" / "@eaDir" / "image_0001.jpg" / "SYNOPHOTO_THUMB_M.jpg", 90)
    image(tmp_path / "@eaDir" / "x.jpg", 91)
    image(tmp_path / "loose.jpg", 92)
    (tmp_path / ".cache").mkdir()
    dataset = Folder(root=str(tmp_path)).load()
    assert dataset.class_names == ("a", "b")
    assert sum(len(split) for split in dataset.splits.values()) == 8
    told = {one.kind: (one.count, one.paths) for one in dataset.findings}
    assert told == {
        "other_files": (1, ("a/notes.txt",)),
        "stray_files": (6, (".DS_Store", "@eaDir", "Thumbs.db")),
        "no_class": (1, ("loose.jpg",)),
    }


def test_what_cannot_work_is_one_clear_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.root must be given"):
        Folder().load()
    with pytest.raises(DataError, match=r"is not a folder\. Expected: ROOT/CLASS"):
        Folder(root=str(tmp_path / "none")).load()
    with pytest.raises(DataError, match="has no class folders"):
        Folder(root=str(tmp_path)).load()
    images(tmp_path, ["a"], 4)
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match=r"class folder .*/b is empty"):
        Folder(root=str(tmp_path)).load()
    (tmp_path / "b" / "x.wav").touch()
    with pytest.raises(DataError, match=r"files of one kind.*found: jpg, wav"):
        Folder(root=str(tmp_path)).load()


def test_a_layout_is_not_guessed_where_folders_are_splits_and_something_else(tmp_path):
    for split in ("train", "test"):
        images(tmp_path / split, ["cat", "dog"], 2)
    images(tmp_path, ["unlabeled"], 2)
    with pytest.raises(DataError, match=r"called like splits \(test, train\), and others \(unlabeled\)"):
        Folder(root=str(tmp_path)).load()
    dataset = Folder(root=str(tmp_path), classes=("train", "test", "unlabeled"), duplicates="allow").load()
    assert dataset.class_names == ("train", "test", "unlabeled")  # said, not guessed


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (("data/cat", "data/dog"), r"only folders \(cat, dog\) in data\. .*set data\.root"),
        (("north/cat", "north/dog", "south/cat", "south/dog"), r"only folders \(cat, dog\) in north, south\."),
        (("cat/train", "cat/test", "dog/train", "dog/test"), r"cat has the folders test, train.*splits above classes"),
        (("data/train/cat", "data/test/cat"), r"data has the folders test, train.*Set data\.root"),
        (("train/a/cat", "train/a/dog", "test/a/cat", "test/a/dog"), r"only folders \(cat, dog\) in a\."),
        (("north/cat", "north/dog", "south/cat", "south/cow"), r"only folders \(cat, cow, dog\) in north, south\."),
        (("images/cat", "images/dog", "labels/cat"), r"only folders \(cat, dog\) in images, labels\."),
        (("train/cat", "train/dog", "unlabeled"), r"called like splits \(train\), and others \(unlabeled\)"),
        (("cat\nx", "dog"), r"the class 'cat\\nx', which is no text of one line"),
        ((os.fsdecode(b"caf\xe9"), "dog"), r"the class 'caf\\udce9', which is no text"),
        (("cat ", " cat", "dog"), "But for spaces around it, .* has a class twice: cat. Name each once"),
        (("images",), "has one class, 'images': every answer would be right"),
        (("train/images", "test/images"), "has one class, 'images'"),
    ],
)
def test_a_layout_that_makes_no_sense_is_refused_with_what_was_found(tmp_path, places, message):
    for number, place in enumerate(places):
        for index in range(4):
            image(tmp_path / place / f"{index}.png", 10 * number + index)
    with pytest.raises(DataError, match=message):
        Folder(root=str(tmp_path)).load()


def test_folders_of_patients_in_classes_are_fine_once_the_classes_are_named(tmp_path):
    for number, place in enumerate(("benign/40x", "benign/100x", "malignant/40x", "malignant/100x")):
        for index in range(4):
            image(tmp_path / place / f"{index}.png", 10 * number + index)
    with pytest.raises(DataError, match=r"name them in data\.classes"):
        Folder(root=str(tmp_path)).load()
    assert Folder(root=str(tmp_path), classes=("benign", "malignant")).load().class_names == ("benign", "malignant")


def test_one_name_in_two_unicode_forms_is_one_class(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for number, place in enumerate((f"train/{decomposed}", "train/tea", f"test/{composed}", "test/tea")):
        image(tmp_path / place / "x.png", number)
    dataset = Folder(root=str(tmp_path)).load()
    assert dataset.class_names == (composed, "tea")
    assert names(dataset.splits["train"])[0] == f"train/{decomposed}/x.png"  # paths are left as they are
    assert [one.kind for one in dataset.findings] == ["unicode_forms"]
    for wanted in ((decomposed, "tea"), (f"{decomposed}=caf\u00e9 au lait", "tea")):
        assert Folder(root=str(tmp_path), classes=wanted).load().class_names[0].startswith(composed)


def test_a_file_whose_name_is_no_utf_8_is_read(tmp_path):
    images(tmp_path, ["cat", "dog"], 8)
    os.rename(tmp_path / "cat" / "image_0001.jpg", os.fsencode(tmp_path / "cat") + b"/\xe9.jpg")
    dataset = Folder(root=str(tmp_path)).load()
    assert sum(len(split) for split in dataset.splits.values()) == 16
    assert os.fsdecode(b"cat/\xe9.jpg") in {name for split in dataset.splits.values() for name in names(split)}


def test_lists_of_classes_from_other_editors(tmp_path):
    images(tmp_path / "d", ["cat", "dog"], 4)
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfdog\r\ncat\r\n")
    dataset = Folder(root=str(tmp_path / "d"), classes_file=str(tmp_path / "classes.txt")).load()
    assert dataset.class_names == ("dog", "cat")
    (tmp_path / "classes.txt").write_text("dog;cat\n")
    with pytest.raises(DataError, match="separators join several into one"):
        Folder(root=str(tmp_path / "d"), classes_file=str(tmp_path / "classes.txt")).load()
    with pytest.raises(DataError, match=r"names a class of .* twice"):
        Folder(root=str(tmp_path / "d"), classes=("cat=a", "cat=b", "dog")).load()
    (tmp_path / "classes.txt").write_text('"dog"\n"cat"\n')
    with pytest.raises(DataError, match="without double quotes"):
        Folder(root=str(tmp_path / "d"), classes_file=str(tmp_path / "classes.txt")).load()
