import pickle

import numpy as np
import pytest

from helpers.layouts import image, is_color, names
from hushprompt.data.sets.domainnet import DOMAINS, TEN, DomainNet
from hushprompt.errors import DataError

CLASSES = sorted([*TEN, "The_Eiffel_Tower", *(f"thing_{index:03d}" for index in range(334))])
TEN_IMAGES = [(word, number) for word in TEN for number in range(4)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """All 345 classes in the lists, images of the ten."""
    home = tmp_path_factory.mktemp("data") / "DomainNet"
    for place, domain in enumerate(DOMAINS):
        for row, (word, number) in enumerate(TEN_IMAGES):
            image(home / domain / word / f"{domain}_{number}.jpg", place * 40 + row)
        for split, numbers in (("train", (0, 1, 2)), ("test", (3,))):
            lines = [f"{domain}/{w}/{domain}_{n}.jpg {label}" for label, w in enumerate(CLASSES) for n in numbers]
            (home / f"{domain}_{split}.txt").write_text("\n".join(lines) + "\n")
    return home.parent


def test_the_ten_classes_have_fedbns_order_and_the_domains_theirs(root):
    dataset = DomainNet(root=str(root)).load()
    assert dataset.class_names == (
        "bird", "feather", "headphones", "ice cream", "teapot", "tiger", "whale", "windmill", "wine glass", "zebra",
    )  # fmt: skip
    assert dataset.domain_names == ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
    test = dataset.splits["test"]
    assert test.labels.tolist() == list(range(10)) * 6
    assert test.domains.tolist() == [domain for domain in range(6) for _ in range(10)]
    assert names(test)[13] == "infograph/ice_cream/infograph_3.jpg"
    assert is_color(test.read(np.array([13]))[0], 40 + TEN_IMAGES.index(("ice_cream", 3)))
    assert dataset.split_checksum[:16] == "0d314133bf8fd9da"


def test_all_classes_follow_the_labels_of_the_lists(tmp_path):
    classes = [CLASSES[-1], *CLASSES[:-1]]  # the order is the file's, not the alphabet's
    for domain in DOMAINS:
        (tmp_path / domain).mkdir()
        for split in ("train", "test"):
            lines = [f"{domain}/{word}/{split}.jpg {label}" for label, word in enumerate(classes)]
            (tmp_path / f"{domain}_{split}.txt").write_text("\n".join(lines))
            for word in classes:
                (tmp_path / domain / word).mkdir(exist_ok=True)
                (tmp_path / domain / word / f"{split}.jpg").touch()
    dataset = DomainNet(root=str(tmp_path), subset="all").load()
    assert len(dataset.class_names) == 345
    assert dataset.class_names[0] == "zebra"
    assert "The Eiffel Tower" in dataset.class_names
    assert len(dataset.splits["train"]) == 345 * 6


def test_fedbns_lists_are_honored_where_all_lie(root):
    home = root / "DomainNet"
    written = []
    try:
        for domain in DOMAINS:
            for split, numbers in (("train", (3, 0)), ("test", (1,))):
                rows = [
                    (f"DomainNet/{domain}/{word}/{domain}_{n}.jpg", word) for word in reversed(TEN) for n in numbers
                ]
                paths, words = (np.array(column) for column in zip(*rows, strict=True))
                written.append(home / f"{domain}_{split}.pkl")
                written[-1].write_bytes(pickle.dumps((paths, words), protocol=3))
        dataset = DomainNet(root=str(root), validation_fraction=0.5).load()
    finally:
        for path in written:
            path.unlink()
    assert dataset.split_source.startswith("FedBN's lists")
    assert [len(split) for split in dataset.splits.values()] == [60, 60, 60]
    test = dataset.splits["test"]
    assert test.labels.tolist() == list(range(9, -1, -1)) * 6
    assert is_color(test.read(np.array([0]))[0], TEN_IMAGES.index(("zebra", 1)))


def test_missing_and_damaged_lists_are_named(root, tmp_path):
    with pytest.raises(DataError, match=r"clipart is missing(?s:.)*clipart\.zip"):
        DomainNet(root=str(tmp_path)).load()
    for domain in DOMAINS:
        (tmp_path / domain).mkdir()
    with pytest.raises(DataError, match=r"clipart_train\.txt is missing"):
        DomainNet(root=str(tmp_path)).load()
    for domain in DOMAINS:
        for split in ("train", "test"):
            (tmp_path / f"{domain}_{split}.txt").write_text(f"{domain}/bird/a.jpg 0\n")
    with pytest.raises(DataError, match="must name 345 classes, found 1"):
        DomainNet(root=str(tmp_path)).load()
    (tmp_path / "real_test.txt").write_text("real/cat/a.jpg 0\n")
    with pytest.raises(DataError, match="label 0 is both bird and cat"):
        DomainNet(root=str(tmp_path)).load()
    (tmp_path / "real_test.txt").write_text("what is this\n")
    with pytest.raises(DataError, match="is not DOMAIN/CLASS/IMAGE LABEL"):
        DomainNet(root=str(tmp_path)).load()
