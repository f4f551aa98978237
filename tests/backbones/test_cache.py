import dataclasses
import logging

import pytest
import torch

from hushprompt.backbones.cache import cache_path, image_features
from hushprompt.backbones.toy import Toy as ToyModel
from hushprompt.data.toy import Toy as ToyData


class Counting:
    """A backbone that counts the images it encodes."""

    def __init__(self, backbone):
        self.backbone, self.count = backbone, 0

    def __getattr__(self, name):
        return getattr(self.backbone, name)

    def encode_images(self, images):
        self.count += len(images)
        return self.backbone.encode_images(images)


@pytest.fixture
def backbone():
    return Counting(ToyModel().load())


def test_images_are_encoded_once(backbone, tmp_path):
    data, seen = ToyData().load(), []
    first = image_features(backbone, data, "train", tmp_path, lambda *args: seen.append(args))
    second = image_features(backbone, data, "train", tmp_path)
    assert torch.equal(first, second)
    assert backbone.count == len(data.splits["train"])
    assert seen[-1] == ("encoding toy train", 72, 72)


def test_each_split_has_its_own_file(backbone, tmp_path):
    data = ToyData().load()
    assert len(image_features(backbone, data, "test", tmp_path)) != len(
        image_features(backbone, data, "train", tmp_path)
    )


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_file_is_made_again(backbone, tmp_path, damage, caplog):
    data = ToyData().load()
    first = image_features(backbone, data, "test", tmp_path)
    path = cache_path(backbone, data, "test", tmp_path)
    path.write_bytes(path.read_bytes()[:-8] if damage is None else damage)
    with caplog.at_level(logging.WARNING):
        again = image_features(backbone, data, "test", tmp_path)
    assert torch.equal(first, again)
    assert "made again" in caplog.text


def test_a_changed_image_or_weight_is_not_served_from_the_cache(backbone, tmp_path):
    data = ToyData().load()
    image_features(backbone, data, "test", tmp_path)
    changed = dataclasses.replace(data.splits["test"], fingerprint="0" * 64)
    assert cache_path(backbone, data, "test", tmp_path) != cache_path(
        backbone, dataclasses.replace(data, splits={**data.splits, "test": changed}), "test", tmp_path
    )
    other = ToyModel(token_width=9).load()
    assert cache_path(backbone, data, "test", tmp_path) != cache_path(other, data, "test", tmp_path)


def test_a_file_of_something_else_under_the_same_name_is_not_believed(backbone, tmp_path, caplog):
    data = ToyData().load()
    image_features(backbone, data, "test", tmp_path)
    image_features(backbone, data, "validation", tmp_path)
    cache_path(backbone, data, "validation", tmp_path).rename(cache_path(backbone, data, "test", tmp_path))
    with caplog.at_level(logging.WARNING):
        image_features(backbone, data, "test", tmp_path)
    assert "belong to something else" in caplog.text
