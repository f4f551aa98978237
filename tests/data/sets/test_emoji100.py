import io
import json

import numpy as np
import pytest
from PIL import Image

from hushprompt.data.sets.emoji100 import Emoji100, read_npz
from hushprompt.errors import DataError


def webp(color):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def write(path, blobs, **changes):
    meta = {"names": ["red", "blue"], "vendors": ["v"], "splits": ["train", "validation", "test"]}
    arrays = {
        "data": np.frombuffer(b"".join(blobs), np.uint8),
        "offsets": np.cumsum([0, *map(len, blobs)]).astype(np.int64),
        "label": np.array([0, 1, 0, 1], np.uint8),
        "split": np.array([0, 2, 0, 1], np.uint8),
        "vendor": np.zeros(4, np.uint8),
        "meta": np.frombuffer(json.dumps(meta).encode(), np.uint8),
    }
    np.savez(path, **{**arrays, **changes})
    return path


BLOBS = [webp((255, 0, 0)), webp((0, 0, 255)), webp((250, 0, 0)), webp((0, 0, 250))]


def test_splits_labels_and_pixels_are_those_of_the_file(tmp_path):
    dataset = read_npz(write(tmp_path / "d.npz", BLOBS))
    train = dataset.splits["train"]
    assert train.labels.tolist() == [0, 0]
    images = train.read(np.array([1, 0]))
    assert [image.shape for image in images] == [(4, 4, 3)] * 2
    assert [image[0, 0].tolist() for image in images] == [[250, 0, 0], [255, 0, 0]]
    assert dataset.splits["validation"].read(np.array([0]))[0][0, 0].tolist() == [0, 0, 250]


def test_a_changed_image_changes_only_its_splits_fingerprint(tmp_path):
    before = read_npz(write(tmp_path / "a.npz", BLOBS)).splits
    after = read_npz(write(tmp_path / "b.npz", [webp((1, 2, 3)), *BLOBS[1:]])).splits
    assert before["train"].fingerprint != after["train"].fingerprint
    assert before["test"].fingerprint == after["test"].fingerprint


def test_a_damaged_image_is_named(tmp_path):
    path = write(tmp_path / "d.npz", [b"not a picture", *BLOBS[1:]])
    with pytest.raises(DataError, match=r"Image 0 in .*d\.npz is damaged"):
        read_npz(path).splits["train"].read(np.array([0]))


def test_a_missing_cut_or_strange_file_is_named(tmp_path):
    with pytest.raises(DataError, match="missing or damaged"):
        read_npz(tmp_path / "none.npz")
    (tmp_path / "x.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match="missing or damaged"):
        read_npz(tmp_path / "x.npz")
    with pytest.raises(DataError, match="cut off"):
        read_npz(write(tmp_path / "d.npz", BLOBS, label=np.zeros(3, np.uint8)))


def test_the_embedded_set_is_balanced_and_its_splits_share_no_image():
    dataset = Emoji100().load()
    assert len(dataset.class_names) == 100
    assert set(dataset.splits) == {"train", "validation", "test"}
    seen = set()
    for split in dataset.splits.values():
        counts = np.bincount(split.labels, minlength=100)
        assert counts.min() == counts.max() > 0
        blobs = {split.read.data[a:b].tobytes() for a, b in zip(split.read.starts, split.read.ends, strict=True)}
        assert len(blobs) == len(split)
        assert not seen & blobs
        seen |= blobs
    assert dataset.splits["test"].read(np.array([0]))[0].shape == (64, 64, 3)
