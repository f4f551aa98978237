"""Loading generative models: what fits, what is refused, and how pictures, sounds and conversations are read."""

import json
import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from helpers import tiny_generative
from hushprompt.errors import ConfigError, DataError, UnfitError
from hushprompt.models import generative
from hushprompt.models.generative import SmolVLM
from hushprompt.registry import BACKBONES

PICTURES = [np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(2)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A repository of some families."""
    base = tmp_path_factory.mktemp("hub")
    for kind in ("smolvlm", "llava", "llava_onevision", "qwen2_vl", "qwen2_audio", "voxtral"):
        tiny_generative.write(kind, base / kind)
    return base


def load(folder, **settings):
    return BACKBONES.get(folder.name)(model=str(folder), **settings).load()


def test_a_picture_of_any_size_is_stretched_to_the_square(folders):
    backbone = load(folders / "smolvlm")
    flat = np.repeat(PICTURES[0], 2, axis=1)
    assert backbone.encode_tokens([flat, PICTURES[0]]).shape == (2, 4, 32)
    assert backbone.capabilities.num_tokens == 4
    larger = load(folders / "smolvlm", image_size=64)
    assert larger.encode_tokens(PICTURES).shape == (2, 16, 32)
    assert larger.fingerprint != backbone.fingerprint
    assert load(folders / "qwen2_vl", image_size=48).encode_tokens(PICTURES).shape == (2, 36, 32)
    assert load(folders / "qwen2_vl").capabilities.num_tokens == 784, "at 224 pixels"


def test_weights_are_read_without_the_librarys_bar(folders, capfd):
    from transformers.utils import logging

    was_shown = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    capfd.readouterr()
    load(folders / "smolvlm")
    assert "Loading weights" not in capfd.readouterr().err
    assert logging.is_progress_bar_enabled()
    if not was_shown:
        logging.disable_progress_bar()


def test_neighboring_tokens_are_averaged_and_extra_ones_stay(folders):
    backbone = load(folders / "smolvlm", image_size=64)
    tokens = backbone.encode_tokens(PICTURES)
    fewer = load(folders / "smolvlm", image_size=64, media_tokens=4)
    assert fewer.fingerprint != backbone.fingerprint
    found = fewer.encode_tokens(PICTURES)
    torch.testing.assert_close(found[:, 0], tokens[:, [0, 1, 4, 5]].mean(1))
    torch.testing.assert_close(found[:, 3], tokens[:, [10, 11, 14, 15]].mean(1))
    whole, less = (load(folders / "llava_onevision", media_tokens=num) for num in (None, 5))
    torch.testing.assert_close(less.encode_tokens(PICTURES)[:, -1], whole.encode_tokens(PICTURES)[:, -1])
    positions, span = load(folders / "qwen2_vl", image_size=32, media_tokens=4).media_positions(torch.ones(2, 4).bool())
    assert positions.tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1]]
    assert span.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("smolvlm", {"image_size": 40}, "image_size = 40 does not fit this model, which takes multiples of 16"),
        ("llava", {"image_size": 64}, "which takes images of 32 pixels alone"),
        ("smolvlm", {"media_tokens": 3}, "take k x k with k from 1 to 2"),
        ("llava_onevision", {"media_tokens": 4}, r"take k x k \+ 1 with k from 1 to 4"),
        ("qwen2_audio", {"seconds": 31.0}, "greater than 0 and at most 1, got 31"),
        ("smolvlm", {"question": " "}, "question must not be empty"),
        ("smolvlm", {"chat": "{question}{media}: {answer}"}, "image or sound, then the question"),
        ("smolvlm", {"chat": "{media}{question} {answer}"}, "something that begins the answer"),
    ],
)
def test_settings_that_do_not_fit_are_refused(folders, kind, settings, message):
    with pytest.raises(ConfigError, match=message):
        load(folders / kind, **settings)


def test_sounds_are_cut_and_short_ones_have_fewer_tokens(folders):
    sounds = [np.random.default_rng(0).normal(size=size).astype(np.float32) for size in (9000, 2000)]
    backbone, short = load(folders / "qwen2_audio"), load(folders / "qwen2_audio", seconds=0.5)
    assert (backbone.capabilities.modality, backbone.capabilities.sampling_rate) == ("audio", 8000)
    assert backbone.encode_tokens(sounds).ne(0).any(-1).sum(1).tolist() == [25, 6]
    assert short.encode_tokens(sounds).shape == (2, short.capabilities.num_tokens, 32)
    assert short.capabilities.num_tokens == 12
    assert load(folders / "voxtral").encode_tokens(sounds).shape == (2, 25, 32)


def test_the_turn_is_the_templates_own_and_can_be_given(folders):
    backbone = load(folders / "smolvlm")
    turn = backbone.turn
    assert (turn.header, turn.has_space, turn.end) == ("<end_of_utterance>\nAssistant:", True, "<end_of_utterance>")
    assert backbone.start_ids == ()
    given = load(folders / "smolvlm", chat="Look: {media} {question} Say {answer}!")
    assert (given.turn.before, given.turn.header, given.turn.end) == (
        "Look: <fake_token_around_image><global-img>", " Say", "!",
    )  # fmt: skip
    assert given.fingerprint != backbone.fingerprint
    qwen = load(folders / "qwen2_vl", image_size=32)
    assert qwen.turn.before == "<|im_start|>user\n<|vision_start|>"
    assert (qwen.turn.has_space, qwen.turn.end) == (False, "<|im_end|>")


def test_models_of_other_types_are_refused_in_a_sentence(folders, tmp_path):
    with pytest.raises(ConfigError, match="is of the type 'llava'; this backbone takes 'smolvlm'"):
        SmolVLM(model=str(folders / "llava")).load()
    for kind in ("paligemma", "gemma3"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(UnfitError, match=f"type {kind!r}, which reads image tokens in a way of its own"):
            SmolVLM(model=str(tmp_path)).load()


def test_files_that_are_missing_or_cut_off_are_named(folders, tmp_path):
    for lacking, message in (
        ("model.safetensors", "The weights"),
        ("preprocessor_config.json", "The image processor"),
    ):
        folder = shutil.copytree(folders / "smolvlm", tmp_path / lacking)
        (folder / lacking).unlink()
        with pytest.raises(DataError, match=message):
            SmolVLM(model=str(folder)).load()
    with pytest.raises(DataError, match="does not exist"):
        SmolVLM(model="./nowhere").load()


def test_every_family_has_a_backbone_of_its_name():
    kinds = {one.model_type for one in vars(generative.families).values() if isinstance(one, generative.Family)}
    assert {BACKBONES.get(kind).family.model_type for kind in kinds} == kinds
