import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers import tiny_models
from helpers.reference import check_lower_precision, check_packing, slow_gradients
from helpers.tiny_models import NAMES
from hushprompt.errors import ConfigError, DataError
from hushprompt.methods.base import Batch
from hushprompt.methods.context import ContextConfig
from hushprompt.models.clap import Clap
from hushprompt.models.transformers import Transformers
from hushprompt.prompts.gradients import per_example_gradients
from hushprompt.prompts.prompt_model import PromptModel

for package in ("transformers", "sentencepiece", "google.protobuf", "open_clip"):  # open_clip has CLIP's vocabulary
    pytest.importorskip(package)
KINDS = ["clip", "siglip", "siglip2", "siglip2_naflex", "clap"]
EXACT = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A repository of each kind."""
    base = tmp_path_factory.mktemp("hub")
    for kind in KINDS:
        (base / kind).mkdir()
        getattr(tiny_models, kind)(base / kind)
    return base


def load(folder):
    return (Clap if folder.name.startswith("clap") else Transformers)(model=str(folder), template="a cat of {}").load()


@pytest.fixture(scope="module", params=KINDS)
def loaded(request, folders):
    """One kind: our backbone, and the library's own model and tokenizer."""
    from transformers import AutoModel, AutoTokenizer

    folder = folders / request.param
    return load(folder), AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def library_text_features(loaded, texts):
    """What the library gives for whole texts, filled up to the window as SigLIP wants it."""
    backbone, network, tokenizer = loaded
    window = {"padding": "max_length", "max_length": backbone.capabilities.context_window}
    inputs = tokenizer(texts, return_tensors="pt", **window)
    if backbone.capabilities.sees_padding:  # SigLIP was trained without a mask
        inputs = {"input_ids": inputs["input_ids"]}
    with torch.no_grad():
        return F.normalize(network.get_text_features(**inputs).pooler_output, dim=-1)


def test_a_hand_template_has_the_librarys_text_features(loaded):
    model = PromptModel(loaded[0], NAMES)
    expected = library_text_features(loaded, [f"a cat of {name}" for name in NAMES])
    torch.testing.assert_close(model.template_features, expected, **EXACT)
    assert not torch.allclose(expected[0], expected[1], atol=1e-3)


@pytest.mark.parametrize(("position", "sentence"), [("end", "a cat of {}"), ("front", "{} a cat of")])
def test_a_context_of_words_is_the_written_sentence(loaded, position, sentence):
    model = PromptModel(loaded[0], NAMES)
    count = len(model.words("a cat of", position))
    start = ContextConfig(num_ctx=count, init_words="a cat of", name_position=position).first_context(
        model, np.random.default_rng()
    )
    expected = library_text_features(loaded, [sentence.format(name) for name in NAMES])
    torch.testing.assert_close(model.text_features(start, position), expected, **EXACT)
    with torch.no_grad():
        torch.testing.assert_close(model.text_features(start, position), expected, **EXACT)


def test_a_name_between_two_words_is_the_written_sentence(folders):
    from transformers import AutoModel, AutoTokenizer

    folder = folders / "clip"
    loaded = load(folder), AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model = PromptModel(loaded[0], NAMES)
    start = ContextConfig(num_ctx=2, init_words="the photo", name_position="middle").first_context(
        model, np.random.default_rng()
    )
    expected = library_text_features(loaded, [f"the {name} photo" for name in NAMES])
    torch.testing.assert_close(model.text_features(start, "middle"), expected, **EXACT)


@pytest.mark.parametrize("loaded", [kind for kind in KINDS if kind != "clap"], indirect=True)
def test_images_of_any_size_have_the_librarys_features(loaded):
    from transformers import AutoImageProcessor

    backbone, network, _ = loaded
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, size=(*size, 3), dtype=np.uint8) for size in [(40, 50), (32, 32), (3, 90)]]
    processor = AutoImageProcessor.from_pretrained(network.name_or_path, backend="pil")
    with torch.no_grad():
        inputs = processor(images=images, return_tensors="pt", input_data_format="channels_last")
        expected = F.normalize(network.get_image_features(**inputs).pooler_output, dim=-1)
    features = backbone.encode_images(images)
    assert features.shape == (3, backbone.feature_dim)
    torch.testing.assert_close(features, expected, **EXACT)


def test_clips_patches_are_normed_and_projected_as_its_class_token_is(folders):
    from transformers import AutoImageProcessor, AutoModel

    backbone, network = load(folders / "clip"), AutoModel.from_pretrained(folders / "clip")
    images = [np.random.default_rng(0).integers(0, 256, size=(40, 50, 3), dtype=np.uint8) for _ in range(2)]
    inputs = AutoImageProcessor.from_pretrained(folders / "clip", backend="pil")(
        images=images, return_tensors="pt", input_data_format="channels_last"
    )
    norm, projection = network.vision_model.post_layernorm, network.visual_projection
    with torch.no_grad():
        hidden = network.vision_model(**inputs).last_hidden_state
        tokens = F.layer_norm(hidden, hidden.shape[-1:], norm.weight, norm.bias, norm.eps) @ projection.weight.T
        torch.testing.assert_close(tokens[:, 0], network.get_image_features(**inputs).pooler_output, **EXACT)
    patches = backbone.encode_patches(images)
    assert patches.shape == (2, backbone.capabilities.num_patches, backbone.feature_dim) == (2, 16, 16)
    torch.testing.assert_close(patches, F.normalize(tokens[:, 1:], dim=-1), **EXACT)


def test_only_clip_has_patches(loaded):
    backbone, network, _ = loaded
    assert (backbone.capabilities.num_patches is not None) == (network.config.model_type == "clip")


@pytest.mark.parametrize(("shape", "position"), [((3,), "end"), ((len(NAMES), 2), "middle")])
def test_per_example_gradients_are_those_of_a_loop(loaded, shape, position):
    model = PromptModel(loaded[0], NAMES)
    rng = np.random.default_rng(1)
    features = torch.from_numpy(rng.normal(size=(4, model.backbone.feature_dim))).float()
    batch = Batch(F.normalize(features, dim=1), torch.tensor([0, 1, 2, 1]))
    context = 0.3 * torch.from_numpy(rng.normal(size=(*shape, model.token_width))).float()
    fast, _ = per_example_gradients(model, context, batch.image_features, batch.labels, position)
    for quick_row, slow_row in zip(fast, slow_gradients(model, context, batch, position), strict=True):
        assert (quick_row - slow_row).norm() < 1e-4 * slow_row.norm()


def test_only_clip_shares_a_prefix(loaded):
    backbone, network, _ = loaded
    assert backbone.capabilities.shares_prefix == (network.config.model_type == "clip")


def test_the_shared_prefix_is_exact(folders, monkeypatch):
    check_packing(load(folders / "clip"), monkeypatch)


def test_it_declares_what_it_is(loaded):
    backbone, network, _ = loaded
    scale = network.logit_scale_a if backbone.capabilities.modality == "audio" else network.logit_scale
    assert backbone.logit_scale == pytest.approx(float(scale.detach().exp()))
    assert backbone.encode_prompts(
        torch.zeros(1, backbone.capabilities.context_window, backbone.token_width), torch.tensor([3])
    )[0].shape == (backbone.feature_dim,)
    assert not any(parameter.requires_grad for parameter in backbone._model.parameters())
    assert not backbone._model.training
    assert all(parameter.dtype == torch.float32 for parameter in backbone._model.parameters())


def copy(folders, kind, tmp_path):
    return shutil.copytree(folders / kind, tmp_path / kind)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("kind", ["siglip", "siglip2", "clap"])
def test_the_fingerprint_is_that_of_weights_tokenizer_and_preprocessing(folders, tmp_path, kind):
    from safetensors.torch import load_file, save_file

    first = load(folders / kind).fingerprint
    folder = copy(folders, kind, tmp_path)
    assert load(folder).fingerprint == first
    seen = {first}
    edit(folder / "preprocessor_config.json", **({"hop_length": 90} if kind == "clap" else {"image_mean": [0, 0, 0]}))
    seen.add(load(folder).fingerprint)
    edit(folder / "tokenizer_config.json", pad_token="<mask>" if kind != "siglip" else "<pad>")
    seen.add(load(folder).fingerprint)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("final_layer_norm.bias") or "pooler.dense.bias" in name)
    weights[name] = weights[name] + 1e-6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    seen.add(load(folder).fingerprint)
    assert len(seen) == 4


def test_a_damaged_or_incomplete_folder_is_a_clear_error(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = copy(folders, "siglip", tmp_path)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"weights \(model\.safetensors\) in .*siglip cannot be read"):
        load(folder)
    weights.write_bytes(whole)
    tensors = load_file(weights)
    save_file({k: v for k, v in tensors.items() if "head.bias" not in k}, weights, metadata={"format": "pt"})
    with pytest.raises(
        DataError, match=r"lack 1 tensors that its config\.json asks for, such as text_model\.head\.bias"
    ):
        load(folder)
    weights.write_bytes(whole)
    edit(
        folder / "config.json",
        text_config={**json.loads((folder / "config.json").read_text())["text_config"], "hidden_size": 64},
    )
    with pytest.raises(DataError, match="cannot be read"):
        load(folder)
    folder = copy(folders, "siglip2", tmp_path)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(DataError, match=r"image processor \(preprocessor_config\.json\) in .* cannot be read"):
        load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="Siglip2Tokenizer cannot spell 'a' or has no end or padding token"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(DataError, match=r"config\.json in .* cannot be read"):
        load(folder)


def test_a_model_of_another_kind_is_refused(folders):
    with pytest.raises(ConfigError, match="is of the type 'clap'; this backbone takes: clip, siglip, siglip2"):
        Transformers(model=str(folders / "clap")).load()
    with pytest.raises(ConfigError, match="is of the type 'clip'; this backbone takes: clap"):
        Clap(model=str(folders / "clip")).load()


def test_a_missing_folder_and_an_unreachable_hub_say_what_to_put_where(monkeypatch):
    with pytest.raises(DataError, match=r"model folder './nothing' does not exist.*or a hub name such as"):
        Transformers(model="./nothing").load()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"hf download no-such/model --local-dir FOLDER.*backbone\.model=FOLDER"):
        Transformers(model="no-such/model").load()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    asked = []
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url: asked.append(url) or {}["no network"])
    with pytest.raises(DataError, match=r"could it be fetched \('no network'\).*hf download no-such/model"):
        Transformers(model="no-such/model").load()
    assert len(asked) == 1, "asked once, without waiting to ask again"


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    for config in (Transformers(), Clap()):
        with pytest.raises(ConfigError, match=r"pip install '.*\[transformers\]'"):
            config.load()


def test_a_template_has_one_place_for_the_name():
    with pytest.raises(ConfigError, match=r"must contain \{\} once, got 'a photo'"):
        Transformers(template="a photo")


def test_texts_beyond_the_window_are_refused(folders):
    model = PromptModel(load(folders / "siglip"), ("cat", "xyz" * 7))
    with pytest.raises(ConfigError, match=r"class '(xyz){7}' needs"):
        model.check_context(4)


# --- sounds -----------------------------------------------------------------------------------------------------


def waves():
    rng = np.random.default_rng(2)
    return [rng.normal(size=count).astype(np.float32) for count in (8000, 3000, 500)]


@pytest.fixture(scope="module")
def fused(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "clap_fused"
    tiny_models.clap(folder, enable_fusion=True)
    return folder


@pytest.mark.parametrize("is_fused", [False, True])
def test_sounds_have_the_librarys_features(folders, fused, is_fused):
    from transformers import AutoFeatureExtractor, AutoModel

    folder = fused if is_fused else folders / "clap"
    network, extractor = AutoModel.from_pretrained(folder), AutoFeatureExtractor.from_pretrained(folder)
    inputs = extractor(waves(), sampling_rate=8000, return_tensors="pt")
    with torch.no_grad():
        expected = network.get_audio_features(
            input_features=inputs["input_features"].float(), is_longer=torch.zeros(3, 1, dtype=torch.bool)
        ).pooler_output
    backbone = load(folder)
    torch.testing.assert_close(backbone.encode_images(waves()), expected, **EXACT)
    assert backbone.capabilities.sampling_rate == 8000


@pytest.mark.parametrize("is_fused", [False, True])
def test_of_a_long_sound_the_beginning_is_heard(folders, fused, is_fused):
    backbone = load(fused if is_fused else folders / "clap")
    long = np.concatenate([waves()[0], np.ones(5000, np.float32)])
    alone, first = backbone.encode_images([long]), backbone.encode_images([waves()[0]])
    assert torch.equal(alone, first)
    assert torch.equal(backbone.encode_images([long]), alone)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_tower_in_bfloat16_is_near_the_exact_one(folders, kind):
    exact, lower = (
        Transformers(model=str(folders / kind), precision=precision).load() for precision in ("float32", "bfloat16")
    )
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, size=(40, 50, 3), dtype=np.uint8) for _ in range(3)]
    check_lower_precision(exact, lower, images)
