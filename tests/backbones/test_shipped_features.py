import numpy as np
import pytest
import torch

from hushprompt.backbones.cache import SHIPPED, FeaturesConfig, feature_key, folder_of, image_features
from hushprompt.backbones.emoji_clip import EmojiClip
from hushprompt.backbones.feature_files import ARRAY, CHUNKS, METADATA
from hushprompt.data.emoji100 import Emoji100

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def backbone():
    return EmojiClip().load()


@pytest.fixture(scope="module")
def dataset():
    return Emoji100().load()


@pytest.mark.parametrize("split", SPLITS)
def test_the_embedded_drawings_come_with_their_features(backbone, dataset, split, tmp_path):
    def progress(*_):
        pytest.fail("nothing to encode")

    features = image_features(backbone, dataset, split, tmp_path, FeaturesConfig(), progress).tensor()
    assert not list(tmp_path.iterdir())
    chosen = np.arange(0, len(features), 37)
    expected = backbone.encode_images(dataset.splits[split].read(chosen))
    torch.testing.assert_close(features[chosen], expected, rtol=1e-4, atol=1e-6)


def test_other_settings_have_no_features_there(backbone, dataset):
    def is_shipped(config, kind="pooled"):
        return folder_of(SHIPPED, feature_key(backbone, dataset, "train", config, kind)).exists()

    assert is_shipped(FeaturesConfig())
    assert not is_shipped(FeaturesConfig(dtype="float16"))
    assert not is_shipped(FeaturesConfig(num_views=2))
    assert not is_shipped(FeaturesConfig(), "patches")


def test_what_is_shipped_is_a_cache_and_no_more(backbone, dataset):
    folders = [folder_of(SHIPPED, feature_key(backbone, dataset, split, FeaturesConfig())) for split in SPLITS]
    found = sorted(path for path in (SHIPPED / "features").rglob("*") if path.is_file())
    assert found == sorted(folder / name for folder in folders for name in (ARRAY, CHUNKS, METADATA))
