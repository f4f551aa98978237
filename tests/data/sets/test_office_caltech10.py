import pickle
import shutil

import numpy as np
import pytest

from helpers.layouts import image, is_color, names
from hushprompt.data.sets.office_caltech10 import DOMAINS, TEN, OfficeCaltech10
from hushprompt.errors import DataError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    home = tmp_path_factory.mktemp("data") / "office_caltech_10"
    for place, domain in enumerate(DOMAINS):
        for label, word in enumerate(TEN):
            for number in range(4):
                image(home / domain / word / f"frame_{number}.jpg", place * 40 + label * 4 + number)
    return home.parent


def write_lists(home):
    for domain in DOMAINS:
        for split, numbers in (("train", (0, 1, 2)), ("test", (3,))):
            paths = [f"office_caltech_10/{domain}/{word}/frame_{n}.jpg" for word in TEN for n in numbers]
            words = [word for word in TEN for _ in numbers]
            (home / f"{domain}_{split}.pkl").write_bytes(
                pickle.dumps((paths, np.array(words, dtype=object)), protocol=4)
            )


def test_each_domain_is_split_by_class_and_the_split_is_pinned(root):
    dataset = OfficeCaltech10(root=str(root)).load()
    assert dataset.class_names[:2] == ("back pack", "bike")
    assert dataset.domain_names == ("amazon", "caltech", "dslr", "webcam")
    for split, count in (("train", 2), ("validation", 1), ("test", 1)):
        part = dataset.splits[split]
        table = np.zeros((4, 10), int)
        np.add.at(table, (part.domains, part.labels), 1)
        assert (table == count).all()
    assert dataset.split_checksum[:16] == "de36a5c9ea2eb0a1"


def test_fedbns_lists_are_honored(root, tmp_path):
    shutil.copytree(root / "office_caltech_10", tmp_path / "office_caltech_10")
    write_lists(tmp_path / "office_caltech_10")
    dataset = OfficeCaltech10(root=str(tmp_path)).load()
    assert list(dataset.splits) == ["train", "test"]
    test = dataset.splits["test"]
    assert test.labels.tolist() == list(range(10)) * 4
    assert names(test)[10] == "caltech/back_pack/frame_3.jpg"
    assert is_color(test.read(np.array([10]))[0], 40 + 3)
    assert len(OfficeCaltech10(root=str(tmp_path), validation_fraction=0.34).load().splits["validation"]) == 40


def test_missing_and_damaged_files_are_named(root, tmp_path):
    home = tmp_path / "office_caltech_10"
    shutil.copytree(root / "office_caltech_10", home)
    write_lists(home)
    (home / "dslr_test.pkl").write_bytes(pickle.dumps((["dslr/bike/frame_0.jpg"], ["a strange class"])))
    with pytest.raises(DataError, match=r"dslr_test\.pkl is not a pair of paths and class names"):
        OfficeCaltech10(root=str(tmp_path)).load()
    (home / "dslr_test.pkl").unlink()
    shutil.rmtree(home / "webcam" / "mug")
    with pytest.raises(DataError, match=r"webcam/mug is missing"):
        OfficeCaltech10(root=str(tmp_path)).load()
