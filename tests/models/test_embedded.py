import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hushprompt.data.sets.emoji100 import Emoji100
from hushprompt.features import cache
from hushprompt.features.cache import SHIPPED, FeaturesConfig, feature_key, folder_of, image_features
from hushprompt.features.store import ARRAY, CHUNKS, METADATA
from hushprompt.models.embedded import EmojiClip, center_square
from hushprompt.prompts.prompt_model import PromptModel

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def backbone():
    return EmojiClip().load()


@pytest.fixture(scope="module")
def dataset():
    return Emoji100().load()


def test_it_knows_the_embedded_drawings(backbone, dataset):
    test = dataset.splits["test"]
    chosen = np.arange(0, len(test), 10)
    features = backbone.encode_images(test.read(chosen))
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(chosen)), rtol=1e-5, atol=0)
    model = PromptModel(backbone, dataset.class_names)
    is_right = model.logits(features, model.template_features).argmax(dim=1) == torch.from_numpy(test.labels[chosen])
    assert float(is_right.double().mean()) > 0.35


def test_its_patches_average_to_the_image(backbone, dataset):
    """By the network's own modules; the projection is linear, so the mean may be taken before or after it."""
    images = dataset.splits["test"].read(np.arange(0, 2000, 400))
    patches = backbone.encode_patches(images)
    assert patches.shape == (5, backbone.capabilities.num_patches, backbone.feature_dim)
    torch.testing.assert_close(patches.norm(dim=2), torch.ones(5, 9))
    image = backbone._network.image
    whole = image.patches(backbone._pixels(images)).mean(dim=1)
    torch.testing.assert_close(whole, image(backbone._pixels(images)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(F.normalize(whole, dim=1), backbone.encode_images(images), rtol=1e-4, atol=1e-5)


def test_its_fast_path_is_exact_on_the_real_names(backbone, dataset):
    model = PromptModel(backbone, dataset.class_names)
    context = 0.02 * torch.randn(16, model.token_width, generator=torch.Generator().manual_seed(0))
    plain = backbone.encode_prompts(*model.plain_prompts(context))
    torch.testing.assert_close(model.text_features(context), plain, rtol=1e-5, atol=1e-6)


def test_sixteen_context_tokens_fit(backbone, dataset):
    PromptModel(backbone, dataset.class_names).check_context(16)


def test_out_of_python_its_features_are_the_same_bit_for_bit(backbone, dataset):
    images, other = dataset.splits["test"].read(np.arange(5)), EmojiClip().load()
    other.prepare_for_threads()
    assert isinstance(other._tower, torch.jit.ScriptModule)
    for count in (1, 5):
        assert torch.equal(other.encode_images(images[:count]), backbone.encode_images(images[:count]))


def test_its_fingerprint_is_stable(backbone):
    assert EmojiClip().load().fingerprint == backbone.fingerprint
    assert len(backbone.fingerprint) == 64


def test_images_of_other_sizes_are_made_square(backbone, dataset):
    (drawing,) = dataset.splits["test"].read(np.array([0]))
    assert center_square(drawing, 64) is drawing
    wide = np.pad(np.kron(drawing, np.ones((4, 4, 1), np.uint8)), ((0, 0), (100, 100), (0, 0)))
    features = backbone.encode_images([drawing, wide])
    assert float(features[0] @ features[1]) > 0.98
    assert center_square(np.zeros((1, 300, 3), np.uint8), 64).shape == (64, 64, 3)


@pytest.mark.parametrize("split", SPLITS)
def test_the_embedded_drawings_come_with_their_features(backbone, dataset, split, tmp_path):
    def progress(*_):
        pytest.fail("nothing to encode")

    features = image_features(backbone, dataset, split, tmp_path, FeaturesConfig(), progress).tensor()
    assert not list(tmp_path.iterdir())
    chosen = np.arange(0, len(features), 37)
    expected = backbone.encode_images(dataset.splits[split].read(chosen))
    torch.testing.assert_close(features[chosen], expected, rtol=1e-4, atol=1e-6)


def test_damaged_ones_are_named_and_not_taken(backbone, dataset, tmp_path, monkeypatch, caplog):
    few = np.arange(20)
    split = dataset.splits["validation"]
    small = dataclasses.replace(split, labels=split.labels[few], domains=split.domains[few], fingerprint="few")
    data = dataclasses.replace(dataset, splits={**dataset.splits, "validation": small})
    sound = image_features(backbone, data, "validation", tmp_path, FeaturesConfig()).tensor().clone()
    monkeypatch.setattr(cache, "SHIPPED", tmp_path)
    (array,) = tmp_path.rglob(ARRAY)
    array.write_bytes(array.read_bytes()[:-1] + b"\xff")
    again = image_features(backbone, data, "validation", tmp_path / "own", FeaturesConfig()).tensor()
    assert torch.equal(again, sound)
    assert [record.message for record in caplog.records] == [
        f"Features that came with the package, in {array.parent}, are damaged. Install it again."
    ]


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
