import pickle

import numpy as np
import pytest

from hushprompt.data.sets.cifar import Cifar10, Cifar100
from hushprompt.errors import DataError


def batch(count, seed, key, num_classes):
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, size=(count, 3072), dtype=np.uint8)
    labels = [index % num_classes for index in range(count)]
    return {b"data": data, key: labels, b"filenames": [b"%d.png" % index for index in range(count)]}


def dump(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.fixture
def root10(tmp_path):
    home = tmp_path / "cifar-10-batches-py"
    for number in range(1, 6):
        dump(home / f"data_batch_{number}", batch(20, number, b"labels", 10))
    dump(home / "test_batch", batch(10, 9, b"labels", 10))
    dump(home / "batches.meta", {b"label_names": [b"airplane", *(b"thing%d" % index for index in range(9))]})
    return tmp_path


@pytest.fixture
def root100(tmp_path):
    home = tmp_path / "cifar-100-python"
    for number, name in enumerate(("train", "test")):
        content = batch(100 * (2 - number), number, b"fine_labels", 100)
        dump(home / name, {**content, b"coarse_labels": [0] * len(content[b"data"])})
    dump(home / "meta", {b"fine_label_names": [b"aquarium_fish", *(b"thing%d" % index for index in range(99))]})
    return tmp_path


def test_batches_come_one_after_the_other_channels_last(root10):
    dataset = Cifar10(root=str(root10)).load()
    assert dataset.class_names[0] == "airplane"
    assert [len(split) for split in dataset.splits.values()] == [100, 10]
    train = dataset.splits["train"]
    assert train.labels.tolist() == [index % 10 for index in range(20)] * 5
    third = batch(20, 3, b"labels", 10)[b"data"][7]
    (image,) = train.read(np.array([47]))
    assert image.shape == (32, 32, 3)
    assert np.array_equal(image[:, :, 0].reshape(-1), third[:1024])
    assert np.array_equal(image[:, :, 2].reshape(-1), third[2048:])
    assert dataset.split_checksum[:16] == "53063e4f38230f9c"


def test_cifar100_uses_the_fine_labels_and_names(root100):
    dataset = Cifar100(root=str(root100)).load()
    assert dataset.class_names[0] == "aquarium fish"
    assert len(dataset.splits["train"]) == 200
    assert dataset.splits["test"].labels.tolist() == list(range(100))
    assert dataset.split_checksum[:16] == "ed526ca2bd73bd50"


def test_validation_is_held_out_of_training_only_when_asked(root10):
    whole, held = (Cifar10(root=str(root10), validation_fraction=value).load() for value in (0.0, 0.3))
    assert "validation" not in whole.splits
    assert [len(split) for split in held.splits.values()] == [70, 30, 10]
    assert np.bincount(held.splits["validation"].labels).tolist() == [3] * 10
    assert whole.splits["test"].fingerprint == held.splits["test"].fingerprint
    assert whole.splits["train"].fingerprint != held.splits["train"].fingerprint


def test_missing_damaged_and_dangerous_files_are_named(root10):
    home = root10 / "cifar-10-batches-py"
    (home / "data_batch_2").write_bytes((home / "data_batch_2").read_bytes()[:100])
    with pytest.raises(DataError, match=r"data_batch_2 is not a pickle of plain values"):
        Cifar10(root=str(root10)).load()
    (home / "data_batch_2").write_bytes(pickle.dumps(eval))
    with pytest.raises(DataError, match=r"data_batch_2 .*asks for builtins\.eval"):
        Cifar10(root=str(root10)).load()
    dump(home / "data_batch_2", {b"labels": []})
    with pytest.raises(DataError, match="data_batch_2 has no data"):
        Cifar10(root=str(root10)).load()
    (home / "data_batch_2").unlink()
    with pytest.raises(DataError, match=r"data_batch_2 is missing(?s:.)*data fetch cifar10"):
        Cifar10(root=str(root10)).load()
