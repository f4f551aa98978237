import importlib.util
import json
import shutil
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from helpers import tiny_models
from helpers.reference import check_lower_precision, check_packing, slow_gradients
from helpers.tiny_models import NAMES
from hushprompt.errors import ConfigError, DataError
from hushprompt.methods.base import Batch
from hushprompt.methods.context import ContextConfig
from hushprompt.models.open_clip import OpenClip, find_tokenizer
from hushprompt.prompts.gradients import per_example_gradients
from hushprompt.prompts.prompt_model import PromptModel

pytestmark = pytest.mark.skipif(  # by name: to import them would cost every worker seconds
    not all(map(importlib.util.find_spec, ("open_clip", "transformers"))), reason="needs open_clip and transformers"
)
KINDS = [*tiny_models.OPEN_CLIP, "siglip", "clipa", "worldwide", "roberta"]
EXACT = {"rtol": 0, "atol": 1e-5}
TEMPLATE = "the photo of {}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Small architectures that open_clip knows from then on."""
    import open_clip

    folder = tmp_path_factory.mktemp("open_clip")
    tiny_models.write_open_clip_configs(folder)
    open_clip.add_model_config(folder)
    return folder


@pytest.fixture(scope="module")
def models(folder):
    """The library's own model of each architecture, with its weights in a safetensors file."""
    made = {}
    for kind in KINDS:
        made[kind] = tiny_models.open_clip_model(kind)
        save_file({k: v.clone() for k, v in made[kind].state_dict().items()}, folder / f"{kind}.safetensors")
    return made


def load(kind, checkpoint, **settings):
    return OpenClip(architecture=f"tiny-{kind}", checkpoint=str(checkpoint), template=TEMPLATE, **settings).load()


@pytest.fixture(scope="module")
def backbones(folder, models):
    return {kind: load(kind, folder / f"{kind}.safetensors") for kind in KINDS}


def library_text_features(models, kind, texts):
    import open_clip

    with torch.no_grad():
        return models[kind].encode_text(open_clip.get_tokenizer(f"tiny-{kind}")(texts), normalize=True)


def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size=(*size, 3), dtype=np.uint8) for size in [(40, 50), (64, 64), (3, 90)]]


every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_a_hand_template_has_the_librarys_text_features(backbones, models, kind):
    model = PromptModel(backbones[kind], NAMES)
    expected = library_text_features(models, kind, [TEMPLATE.format(name) for name in NAMES])
    torch.testing.assert_close(model.template_features, expected, **EXACT)
    assert not torch.allclose(expected[0], expected[1], atol=1e-3)


@every_kind
@pytest.mark.parametrize(("position", "sentence"), [("end", "the photo of {}"), ("front", "{} the photo of")])
def test_a_context_of_words_is_the_written_sentence(backbones, models, kind, position, sentence):
    model = PromptModel(backbones[kind], NAMES)
    config = ContextConfig(
        num_ctx=len(model.words("the photo of", position)), init_words="the photo of", name_position=position
    )
    start = config.first_context(model, np.random.default_rng())
    expected = library_text_features(models, kind, [sentence.format(name) for name in NAMES])
    torch.testing.assert_close(model.text_features(start, position), expected, **EXACT)
    with torch.no_grad():
        torch.testing.assert_close(model.text_features(start, position), expected, **EXACT)


@every_kind
def test_images_of_any_size_have_the_librarys_features(backbones, models, kind):
    import open_clip

    config = open_clip.transform.PreprocessCfg(**models[kind].visual.preprocess_cfg)
    transform = open_clip.transform.image_transform_v2(config, is_train=False)
    with torch.no_grad():
        pixels = torch.stack([transform(Image.fromarray(image)) for image in images()])
        expected = models[kind].encode_image(pixels, normalize=True)
    features = backbones[kind].encode_images(images())
    assert features.shape == (3, backbones[kind].feature_dim)
    torch.testing.assert_close(features, expected, **EXACT)


@every_kind
def test_only_towers_pooled_by_a_token_offer_patches(backbones, kind):
    assert (backbones[kind].capabilities.num_patches is not None) == (kind not in ("mobile", "coca"))


def test_a_vision_transformers_patches_are_the_librarys_tokens_projected(backbones, models):
    visual, backbone = models["vit"].visual, backbones["vit"]
    pixels, seen = backbone._images.pixels(images()), []
    hook = visual.ln_post.register_forward_hook(lambda module, arguments, output: seen.append(output))
    with torch.no_grad():
        pooled = visual(pixels)
        tokens = seen[0] @ visual.proj
    hook.remove()
    torch.testing.assert_close(tokens[:, 0], pooled, **EXACT)
    patches = backbone.encode_patches(images())
    assert patches.shape == (3, backbone.capabilities.num_patches, backbone.feature_dim) == (3, 16, 16)
    torch.testing.assert_close(patches, F.normalize(tokens[:, 1:], dim=-1), **EXACT)


def test_a_resnets_patches_are_its_attention_pool_asked_at_every_place(backbones, models):
    """The library's pool computes all places too, and then keeps the first one."""
    visual, backbone = models["resnet"].visual, backbones["resnet"]
    pixels, seen = backbone._images.pixels(images()), []
    true_attention = F.multi_head_attention_forward

    def spy(query, key, value, **settings):
        mixed = true_attention(query=query, key=key, value=value, **settings)
        seen.append(mixed[0].transpose(0, 1))
        return mixed

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(F, "multi_head_attention_forward", spy)
        pooled = visual(pixels)
    (tokens,) = seen
    torch.testing.assert_close(tokens[:, 0], pooled, **EXACT)
    patches = backbone.encode_patches(images())
    assert patches.shape == (3, backbone.capabilities.num_patches, 16) == (3, 4, 16)
    torch.testing.assert_close(patches, F.normalize(tokens[:, 1:], dim=-1), **EXACT)


@pytest.mark.parametrize("kind", ["vit", "resnet", "siglip", "clipa"])
def test_the_forward_pass_that_gives_patches_gives_the_image_too(backbones, kind):
    tower = backbones[kind]._images
    tokens = tower.tokens(tower.pixels(images()))
    torch.testing.assert_close(F.normalize(tokens[:, 0], dim=-1), backbones[kind].encode_images(images()), **EXACT)


@every_kind
@pytest.mark.parametrize(("shape", "position"), [((3,), "end"), ((len(NAMES), 2), "middle")])
def test_per_example_gradients_are_those_of_a_loop(backbones, kind, shape, position):
    model = PromptModel(backbones[kind], NAMES)
    rng = np.random.default_rng(1)
    features = torch.from_numpy(rng.normal(size=(4, model.backbone.feature_dim))).float()
    batch = Batch(F.normalize(features, dim=1), torch.tensor([0, 1, 2, 1]))
    context = 0.3 * torch.from_numpy(rng.normal(size=(*shape, model.token_width))).float()
    fast, _ = per_example_gradients(model, context, batch.image_features, batch.labels, position)
    for quick_row, slow_row in zip(fast, slow_gradients(model, context, batch, position), strict=True):
        assert (quick_row - slow_row).norm() < 1e-4 * slow_row.norm()


@every_kind
def test_only_causal_towers_share_a_prefix(backbones, kind):
    shares = backbones[kind].capabilities.shares_prefix
    assert shares == (kind in ("vit", "vit-quickgelu", "resnet", "worldwide", "coca"))


@pytest.mark.parametrize("kind", ["vit", "vit-quickgelu", "resnet", "worldwide"])
def test_the_shared_prefix_is_exact(backbones, kind, monkeypatch):
    check_packing(backbones[kind], monkeypatch)


@pytest.mark.parametrize("is_correct", [False, True])
@pytest.mark.parametrize("num_ctx", [3, 16])
def test_a_class_token_behind_the_text_is_read_with_a_shared_prefix(folder, models, num_ctx, is_correct):
    """Also where a text fills the window of 23 tokens, so that no padding follows it."""
    backbone = load("coca", folder / "coca.safetensors")
    backbone._text._text.correct_cls_mask = is_correct
    backbone.to("cpu")  # makes the tower anew
    model = PromptModel(backbone, ("cat", "zebra kiwi", "ox", "a red kiwi cat ox"))
    context = 0.3 * torch.randn(num_ctx, model.token_width, generator=torch.Generator().manual_seed(0))
    _, ends = model.plain_prompts(context)
    assert (int(ends.max()) == 22) == (num_ctx == 16)
    weights = torch.randn(4, backbone.feature_dim, generator=torch.Generator().manual_seed(1))
    leaf = context.requires_grad_()
    slow, fast = backbone.encode_prompts(*model.plain_prompts(leaf)), model.text_features(leaf)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-5)
    slow_grad, fast_grad = (torch.autograd.grad((features * weights).sum(), leaf)[0] for features in (slow, fast))
    assert (fast_grad - slow_grad).norm() < 1e-5 * slow_grad.norm()


@every_kind
def test_it_is_frozen_and_declares_its_scale(backbones, models, kind):
    backbone = backbones[kind]
    assert backbone.logit_scale == pytest.approx(float(models[kind].logit_scale.exp()))
    assert not any(parameter.requires_grad for parameter in backbone._model.parameters())
    assert not backbone._model.training
    assert backbone.capabilities.sees_padding == (kind in ("mobile", "siglip", "clipa", "coca"))


def test_clips_own_tokenizer_is_used(backbones):
    backbone = backbones["vit"]
    assert backbone.tokenize("a photo of a") == [320, 1125, 539, 320]
    assert (backbone.start_ids, backbone.end_ids, backbone.pad_id) == ((49406,), (49407,), 0)
    assert backbone.tokenize(" Cat") == backbone.tokenize("cat")


# --- formats of weights -----------------------------------------------------------------------------------------


def test_state_dicts_of_every_kind_are_read(folder, models, backbones, tmp_path):
    state = models["vit"].state_dict()
    half = {name: tensor.half() for name, tensor in state.items()}
    for index, saved in enumerate(
        [state, {"state_dict": state, "epoch": 3}, {f"module.{k}": v for k, v in state.items()}]
    ):
        path = tmp_path / f"{index}.pt"
        torch.save(saved, path)
        assert load("vit", path).fingerprint == backbones["vit"].fingerprint
    torch.save(half, tmp_path / "half.pt")
    rounded = load("vit", tmp_path / "half.pt")
    assert rounded._model.token_embedding.weight.dtype == torch.float32
    assert rounded.fingerprint != backbones["vit"].fingerprint


def test_openais_archive_is_read_and_gets_its_activation(folder, models, tmp_path):
    with torch.no_grad():
        tokens = library_text_features(models, "vit-quickgelu", [TEMPLATE.format(name) for name in NAMES])
    tiny_models.openai_archive(tiny_models.open_clip_model("vit-quickgelu"), tmp_path / "ViT.pt")
    backbone = load("vit", tmp_path / "ViT.pt")  # the plain name, as users write it
    torch.testing.assert_close(PromptModel(backbone, NAMES).template_features, tokens, **EXACT)
    expected = load("vit-quickgelu", folder / "vit-quickgelu.safetensors").encode_images(images())
    torch.testing.assert_close(backbone.encode_images(images()), expected, **EXACT)


def test_an_older_layout_is_read_into_a_model_with_a_text_tower_of_its_own(models, backbones, tmp_path):
    state = {name.removeprefix("text."): tensor for name, tensor in models["mobile"].state_dict().items()}
    torch.save(state, tmp_path / "old.pt")
    assert load("mobile", tmp_path / "old.pt").fingerprint == backbones["mobile"].fingerprint


def test_a_tag_beside_a_checkpoint_says_how_it_was_trained(folder, models, monkeypatch):
    import open_clip

    settings = {"hf_hub": "some/model/", "quick_gelu": True, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    more = {"interpolation": "bilinear", "resize_mode": "squash"}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-vit", {"openai": {**settings, **more}})
    backbone = load("vit", folder / "vit-quickgelu.safetensors", pretrained="openai")
    expected = library_text_features(models, "vit-quickgelu", [TEMPLATE.format(name) for name in NAMES])
    torch.testing.assert_close(PromptModel(backbone, NAMES).template_features, expected, **EXACT)
    squashed = [np.asarray(Image.fromarray(x).resize((32, 32), Image.Resampling.BILINEAR)) for x in images()]
    pixels = (torch.from_numpy(np.stack(squashed)).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        wanted = models["vit-quickgelu"].encode_image(pixels, normalize=True)
    torch.testing.assert_close(backbone.encode_images(images()), wanted, **EXACT)
    plain = load("vit", folder / "vit-quickgelu.safetensors")
    assert plain.fingerprint != backbone.fingerprint


def test_a_local_folder_of_the_hubs_layout_is_enough(folder, models, backbones, tmp_path):
    shutil.copytree(folder / "unigram", tmp_path / "siglip")
    settings = json.loads((folder / "tiny-siglip.json").read_text())
    settings = {"model_cfg": settings, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "siglip" / "open_clip_config.json").write_text(json.dumps(settings))
    architecture = f"local-dir:{tmp_path / 'siglip'}"
    with pytest.raises(DataError, match="has no weights"):
        OpenClip(architecture=architecture).load()
    shutil.copy(folder / "siglip.safetensors", tmp_path / "siglip" / "open_clip_model.safetensors")
    backbone = OpenClip(architecture=architecture, template=TEMPLATE).load()
    expected = PromptModel(backbones["siglip"], NAMES).template_features
    torch.testing.assert_close(PromptModel(backbone, NAMES).template_features, expected, **EXACT)
    assert backbone.fingerprint != backbones["siglip"].fingerprint  # its preprocessing differs
    with pytest.raises(ConfigError, match="pretrained must stay empty"):
        OpenClip(architecture=architecture, pretrained="webli").load()
    with pytest.raises(DataError, match=r"open_clip_config\.json is missing or no open_clip config"):
        OpenClip(architecture=f"local-dir:{tmp_path}").load()


def test_the_fingerprint_is_that_of_the_weights(folder, models, backbones, tmp_path):
    assert load("vit", folder / "vit.safetensors").fingerprint == backbones["vit"].fingerprint
    state = {name: tensor.clone() for name, tensor in models["vit"].state_dict().items()}
    state["ln_final.bias"][0] += 1e-6
    save_file(state, tmp_path / "changed.safetensors")
    assert load("vit", tmp_path / "changed.safetensors").fingerprint != backbones["vit"].fingerprint
    assert len({backbone.fingerprint for backbone in backbones.values()}) == len(KINDS)


# --- clear errors -----------------------------------------------------------------------------------------------


def test_a_missing_or_damaged_checkpoint_is_named(folder, models, tmp_path):
    with pytest.raises(DataError, match=r"none\.pt does not exist\. Check backbone\.checkpoint"):
        load("vit", tmp_path / "none.pt")
    torch.save(models["vit"].state_dict(), tmp_path / "vit.pt")
    tiny_models.openai_archive(tiny_models.open_clip_model("vit-quickgelu"), tmp_path / "archive.pt")
    for whole in (folder / "vit.safetensors", tmp_path / "vit.pt", tmp_path / "archive.pt"):
        cut = tmp_path / f"cut{whole.suffix}"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        with pytest.raises(DataError, match="is damaged or no weights file"):
            load("vit", cut)
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(DataError, match="is damaged or no weights file"):
        load("vit", tmp_path / "text.pt")


def test_a_checkpoint_of_another_architecture_is_refused(folder, models):
    with pytest.raises(DataError, match=r"does not fit the architecture tiny-resnet: .*Set backbone\.architecture"):
        load("resnet", folder / "vit.safetensors")
    with pytest.raises(DataError, match="does not fit the architecture tiny-mobile"):
        load("mobile", folder / "siglip.safetensors")


def test_custom_attention_is_refused(folder, models):
    import open_clip

    settings = json.loads((folder / "tiny-vit.json").read_text())
    settings["text_cfg"]["scale_attn"] = True
    (folder / "tiny-custom-attention.json").write_text(json.dumps(settings))
    open_clip.add_model_config(folder / "tiny-custom-attention.json")
    save_file(tiny_models.open_clip_model("custom-attention").state_dict(), folder / "custom.safetensors")
    with pytest.raises(ConfigError, match="custom attention blocks"):
        load("custom-attention", folder / "custom.safetensors")


def test_positions_of_another_resolution_are_not_stretched_in_silence(folder, models, tmp_path):
    state = {name: tensor.clone() for name, tensor in models["vit"].state_dict().items()}
    state["visual.positional_embedding"] = torch.zeros(26, 32)
    save_file(state, tmp_path / "larger.safetensors")
    with pytest.raises(DataError, match=r"size mismatch for visual\.positional_embedding"):
        load("vit", tmp_path / "larger.safetensors")


def test_unknown_names_offer_the_nearest():
    with pytest.raises(ConfigError, match=r"no architecture 'ViT-B16'\. Did you mean 'ViT-B-16'"):
        OpenClip(architecture="ViT-B16", pretrained="openai").load()
    with pytest.raises(ConfigError, match=r"no pretrained tag 'opnai'; known: openai, .* Did you mean 'openai'"):
        OpenClip(pretrained="opnai").load()
    with pytest.raises(ConfigError, match=r"Name the weights of ViT-B-16 by backbone\.pretrained \(openai, laion"):
        OpenClip().load()


def test_an_unreachable_hub_says_what_to_put_where(monkeypatch):
    import open_clip

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hint = r"a weights file of https://huggingface\.co/timm/vit_base_patch16_clip_224\.openai, copy it here"
    with pytest.raises(DataError, match=hint + r".*--set backbone\.checkpoint=PATH"):
        OpenClip(pretrained="openai").load()
    hint = r"hf download timm/ViT-B-16-SigLIP --local-dir FOLDER; .* backbone\.architecture=local-dir:FOLDER"
    with pytest.raises(DataError, match=hint):  # its tokenizer is on the hub too
        OpenClip(architecture="ViT-B-16-SigLIP", pretrained="webli").load()
    with pytest.raises(DataError, match=r"The tokenizer 'timm/ViT-B-16-SigLIP' of ViT-B-16-SigLIP is neither here"):
        find_tokenizer(open_clip, "ViT-B-16-SigLIP")
    with pytest.raises(DataError, match=r"hf download no/model --local-dir FOLDER.*local-dir:FOLDER"):
        OpenClip(architecture="hf-hub:no/model").load()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    asked = []
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url: asked.append(url) or {}["no network"])
    monkeypatch.setattr("open_clip.pretrained.hf_hub_download", None)
    for config in (OpenClip(pretrained="openai"), OpenClip(architecture="hf-hub:no/model")):
        with pytest.raises(DataError, match=r"could not be fetched \('no network'\)"):
            config.load()
    with pytest.raises(DataError, match=r"nor could it be fetched \('no network'\)"):
        find_tokenizer(open_clip, "ViT-B-16-SigLIP")
    assert len(asked) == 3, "each asked for once, without waiting to ask again"


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ConfigError, match=r"needs the package open_clip.*pip install '.*\[open_clip\]'"):
        OpenClip(pretrained="openai").load()


def test_a_template_has_one_place_for_the_name():
    with pytest.raises(ConfigError, match=r"must contain \{\} once"):
        OpenClip(template="a photo")


@every_kind
def test_a_tower_in_bfloat16_is_near_the_exact_one(folder, backbones, kind):
    lower = load(kind, folder / f"{kind}.safetensors", precision="bfloat16")
    check_lower_precision(backbones[kind], lower, images())
