"""A text tower without its image tower: the same features and fingerprint; image weights come with an image."""

import dataclasses
import os
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from helpers import tiny_models
from hushprompt.deployment.agreement import open_model
from hushprompt.errors import DataError
from hushprompt.models import text_first
from hushprompt.models import transformers as of_transformers
from hushprompt.models.base import PatchBackbone
from hushprompt.models.open_clip import OpenClip
from hushprompt.models.text_first import KeptFingerprint, Known
from hushprompt.models.transformers import Transformers

for package in ("transformers", "sentencepiece", "google.protobuf", "open_clip"):
    pytest.importorskip(package)
OPEN_CLIP = ["vit", "resnet", "mobile", "coca", "siglip", "roberta"]
TRANSFORMERS = ["clip", "siglip", "siglip2_naflex"]
EXACT = {"rtol": 0, "atol": 0}


@pytest.fixture(scope="module")
def sections(tmp_path_factory):
    """Backbone sections by library and kind, with their weights."""
    import open_clip

    folder, made = tmp_path_factory.mktemp("models"), {}
    tiny_models.write_open_clip_configs(folder)
    open_clip.add_model_config(folder)
    for kind in OPEN_CLIP:
        checkpoint = folder / f"{kind}.safetensors"
        save_file({k: v.clone() for k, v in tiny_models.open_clip_model(kind).state_dict().items()}, checkpoint)
        made[f"open_clip {kind}"] = OpenClip(architecture=f"tiny-{kind}", checkpoint=str(checkpoint))
    for kind in TRANSFORMERS:
        (folder / "hub" / kind).mkdir(parents=True)
        getattr(tiny_models, kind)(folder / "hub" / kind)
        made[f"transformers {kind}"] = Transformers(model=str(folder / "hub" / kind))
    return made


@pytest.fixture
def settled(monkeypatch):
    """Take files that were only just written for settled ones."""
    monkeypatch.setattr(text_first, "SETTLED_NS", 0)


def features(backbone):
    prompts = backbone.embed(torch.tensor([[*backbone.start_ids, 5, 6, *backbone.end_ids]]))
    end = torch.tensor([prompts.shape[1] - 1])
    num_padding = backbone.context_window - prompts.shape[1] if backbone.sees_padding else 0
    return backbone.encode_prompts(F.pad(prompts, (0, 0, 0, num_padding)), end)


def images():
    return [np.random.default_rng(0).integers(0, 256, size=(40, 50, 3), dtype=np.uint8)]


def num_image_weights(backbone):
    """Weights that the process holds for images."""
    network = backbone._model
    tower = network.visual if hasattr(network, "visual") else network.vision_model.encoder
    return sum(weight.numel() for weight in tower.parameters())


@pytest.mark.parametrize("kind", [*(f"open_clip {k}" for k in OPEN_CLIP), *(f"transformers {k}" for k in TRANSFORMERS)])
def test_a_known_model_is_read_without_its_image_tower_and_is_the_same(sections, kind, settled, tmp_path):
    whole, first = sections[kind].load(), sections[kind].load_text_first(tmp_path)
    assert num_image_weights(first) == num_image_weights(whole)  # nothing was known yet
    second = sections[kind].load_text_first(tmp_path)
    assert num_image_weights(second) < num_image_weights(whole) / 2
    for backbone in (first, second):
        assert type(backbone) is type(whole)
        assert backbone.fingerprint == whole.fingerprint
        assert backbone.logit_scale == whole.logit_scale
        torch.testing.assert_close(features(backbone), features(whole), **EXACT)
        torch.testing.assert_close(backbone.encode_images(images()), whole.encode_images(images()), **EXACT)
        if isinstance(whole, PatchBackbone):
            assert backbone.num_patches == whole.num_patches
            torch.testing.assert_close(backbone.encode_patches(images()), whole.encode_patches(images()), **EXACT)


@pytest.mark.parametrize("kind", ["open_clip vit", "transformers clip"])
def test_a_model_of_a_federation_has_no_image_tower_while_no_image_is_encoded(sections, kind, settled, toy_config):
    config = dataclasses.replace(toy_config, backbone=sections[kind])
    whole, known = (open_model(config, ("ant", "bee")).backbone for _ in range(2))
    assert num_image_weights(known) < num_image_weights(whole) / 2


def change(path, is_text):
    """Replace a tower's weights in a file by others of the same shapes, at the old time."""
    weights, times = load_file(path), path.stat()
    for name, tensor in weights.items():
        if name.startswith("vis") != is_text and tensor.is_floating_point():
            weights[name] = tensor + 1
    save_file(weights, path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size


@pytest.fixture
def changeable(sections, tmp_path):
    """A model that is known, in a file that may be changed."""
    path = tmp_path / "weights.safetensors"
    save_file(load_file(sections["open_clip vit"].checkpoint), path)
    section = OpenClip(architecture="tiny-vit", checkpoint=str(path))
    section.load_text_first(tmp_path)
    return section, path


@pytest.mark.parametrize("is_text", [True, False])
def test_other_weights_of_the_same_size_and_time_are_not_taken_for_known(settled, changeable, tmp_path, is_text):
    section, path = changeable
    before = section.load_text_first(tmp_path).fingerprint
    change(path, is_text)
    assert section.load_text_first(tmp_path).fingerprint == section.load().fingerprint != before


def test_an_image_tower_that_was_changed_in_between_is_refused(settled, changeable, tmp_path):
    section, path = changeable
    backbone = section.load_text_first(tmp_path)
    change(path, is_text=False)
    with pytest.raises(DataError, match="have changed"):
        backbone.encode_images(images())


def test_nothing_is_kept_of_files_that_have_only_just_changed(tmp_path, monkeypatch):
    path, known = tmp_path / "weights", Known(fingerprint="f", num_patches=None)
    path.write_bytes(b"1")
    KeptFingerprint(tmp_path, [path], []).keep(known)
    assert KeptFingerprint(tmp_path, [path], []).read() is None
    now = time.time_ns()
    monkeypatch.setattr(text_first.time, "time_ns", lambda: now + 2 * text_first.SETTLED_NS)
    KeptFingerprint(tmp_path, [path], []).keep(known)
    assert KeptFingerprint(tmp_path, [path], []).read() == known
    assert KeptFingerprint(tmp_path, [path], ["another setting"]).read() is None
    began = KeptFingerprint(tmp_path, [path], ["while it is read"])
    path.write_bytes(b"2")
    began.keep(known)
    assert KeptFingerprint(tmp_path, [path], ["while it is read"]).read() is None


def test_a_hub_name_that_is_not_here_has_no_files(monkeypatch):
    import transformers

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert of_transformers.files_of(transformers, "nobody/nothing") == []
