import numpy as np
import pytest
import torch

from helpers.toy_metric import statistics_of, toy_metric
from hushprompt.config import parse as configs
from hushprompt.config.values import to_plain
from hushprompt.data.sets.toy import ToyData
from hushprompt.errors import ConfigError, DataError
from hushprompt.features.cache import FeaturesConfig, check_fit
from hushprompt.federation.rounding import _texts
from hushprompt.methods.base import OneRelease, check_needs
from hushprompt.methods.fedclip import FedCLIP
from hushprompt.methods.fedotp import FedOTP
from hushprompt.methods.promptfl import PromptFL
from hushprompt.methods.zero_shot import ZeroShot
from hushprompt.models.features import FeaturesBackbone, unit
from hushprompt.models.toy import Toy
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.registry import METHODS
from hushprompt.statistics.metric import encoder_of

NAMES = ("ant", "red fox", "kiwi")
TEXTS = np.array([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])


@pytest.fixture
def texts(tmp_path):
    def write(**changes):
        arrays = {"text_features": TEXTS, "class_names": np.array(["ant", "red_fox", "kiwi"]), **changes}
        np.savez(tmp_path / "texts.npz", **{name: values for name, values in arrays.items() if values is not None})
        return FeaturesBackbone(text_features=str(tmp_path / "texts.npz"))

    return write


def test_text_features_are_found_by_name(texts):
    model = PromptModel(texts(logit_scale=np.array(20.0)).load(), ("kiwi", "red fox"))
    model.check_scores()
    torch.testing.assert_close(model.template_features, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert (model.logit_scale, model.backbone.feature_dim) == (20, 2)
    torch.testing.assert_close(model.logits(torch.tensor([[0.6, 0.8]]), model.template_features)[0] / 20,
                               torch.tensor([0.6, 0.8]))  # fmt: skip
    with pytest.raises(ConfigError, match=r"no text feature of the class 'bee' and 1 more\. Add it"):
        PromptModel(texts().load(), ("bee", "ant", "ox")).check_scores()


def test_without_names_they_are_in_label_order(texts):
    backbone = texts(class_names=None).load()
    torch.testing.assert_close(PromptModel(backbone, ("z", "y", "x")).template_features, unit(TEXTS))
    with pytest.raises(ConfigError, match="has 3 text features without names, but there are 2 classes"):
        PromptModel(backbone, ("z", "y")).check_scores()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_features": None}, "text_features"),
        ({"text_features": TEXTS * [[1], [np.nan], [1]]}, "row 1 of the text features is NaN"),
        ({"text_features": TEXTS * [[1], [1], [0]]}, "row 2 of the text features is NaN, infinite or all zero"),
        ({"class_names": np.array(["ant", "red_fox", "red fox"])}, "got 3 names, 2 of them different"),
        ({"class_names": np.array(["ant"])}, "each of the 3 text features once"),
    ],
)
def test_wrong_text_features_are_refused(texts, changes, message):
    with pytest.raises(DataError, match=message):
        texts(**changes).load()


def test_the_fingerprint_is_of_the_content(texts):
    before = texts().load().fingerprint
    assert texts().load().fingerprint == before
    for changed in (texts(text_features=TEXTS + 1), texts(class_names=None), texts(logit_scale=np.array(7.0))):
        assert changed.load().fingerprint != before


def test_one_source_of_text_is_named(texts):
    for wrong in ({}, {"feature_dim": 2, "text_tower": Toy()}):
        with pytest.raises(ConfigError, match=r"takes one of text_features .* got (none|text_tower, feature_dim)"):
            FeaturesBackbone(**wrong)


def test_methods_ask_for_what_they_need(texts):
    nothing, given, tower = (
        backbone.load() for backbone in (FeaturesBackbone(feature_dim=2), texts(), FeaturesBackbone(text_tower="toy"))
    )
    for method in (ZeroShot(), FedCLIP()):
        check_needs(method, given)
        check_needs(method, tower)
        with pytest.raises(ConfigError, match=f"{method.title} needs text features .*no text. Set backbone.text_feat"):
            check_needs(method, nothing)
    for backbone in (nothing, given):
        with pytest.raises(ConfigError, match="PromptFL trains or encodes prompts, and this backbone has no text tow"):
            check_needs(PromptFL(), backbone)
    check_needs(PromptFL(), tower)
    with pytest.raises(ConfigError, match="needs features of image patches"):
        check_needs(FedOTP(), tower)


@pytest.mark.parametrize("name", METHODS.own_names())
def test_no_method_that_says_it_needs_no_tower_calls_one(texts, name):
    method, backbone = METHODS.get(name)(), texts().load()
    try:
        check_needs(method, backbone)
    except ConfigError:
        return
    if isinstance(method, OneRelease):
        method = statistics_of(metric=toy_metric(encoder_of(backbone), feature_dim=backbone.feature_dim))
    model = PromptModel(backbone, NAMES)
    shared, personal = method.init(model, np.random.default_rng(0))
    assert method.logits(model, shared, personal, unit(TEXTS)).shape == (3, 3)
    method.public_file(model, shared)


def test_without_a_tower_nothing_is_encoded(texts):
    model = PromptModel(texts().load(), NAMES)
    for call in (
        lambda: model.text_features(torch.zeros(1, 4)),
        lambda: model.words("a photo", "end"),
        lambda: model.backbone.embed(torch.tensor([1])),
        lambda: model.backbone.encode_prompts(torch.zeros(1, 1, 1), torch.tensor([0])),
    ):
        with pytest.raises(ConfigError, match="no text tower"):
            call()


def test_a_tower_gives_the_prompts_of_its_backbone():
    backbone, toy = FeaturesBackbone(text_tower={"name": "toy", "feature_dim": 5}).load(), Toy(feature_dim=5).load()
    model, real = PromptModel(backbone, NAMES), PromptModel(toy, NAMES)
    model.check_scores()
    context = torch.ones(2, 8)
    assert torch.equal(model.text_features(context), real.text_features(context))
    assert torch.equal(model.template_features, real.template_features)
    assert (backbone.logit_scale, backbone.encoder) == (toy.logit_scale, toy.fingerprint)


def test_a_tower_stands_in_a_config_and_comes_back_from_it():
    section = FeaturesBackbone(text_tower={"name": "toy", "feature_dim": 5}, logit_scale=30.0)
    assert configs.choose("backbone", to_plain(section)) == section
    assert configs.choose("backbone", to_plain(FeaturesBackbone(feature_dim=3))) == FeaturesBackbone(feature_dim=3)
    with pytest.raises(ConfigError, match=r"Unknown key 'colour' in the section backbone\.text_tower"):
        FeaturesBackbone(text_tower={"name": "toy", "colour": 5})


def test_features_of_another_width_or_model_do_not_fit(texts):
    import dataclasses

    features = dataclasses.replace(ToyData().load(), modality="features", feature_dim=6, encoder="abc")
    with pytest.raises(ConfigError, match="have the width 6, those of the backbone 2"):
        check_fit(texts().load(), features, FeaturesConfig())
    with pytest.raises(ConfigError, match="were made by the backbone abc, the text features by"):
        check_fit(FeaturesBackbone(text_tower="toy").load(), features, FeaturesConfig())
    with pytest.raises(ConfigError, match="encodes features, but the data set toy holds image"):
        check_fit(texts().load(), ToyData().load(), FeaturesConfig())


def test_norms_become_one_and_are_left_where_they_are():
    rounded = torch.nn.functional.normalize(torch.randn(5, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    assert torch.equal(unit(rounded.numpy()), rounded)
    half = rounded.half().float()
    assert torch.equal(unit(half.numpy()), half)
    torch.testing.assert_close(unit(1e30 * rounded.numpy().astype(np.float64)), rounded)


@pytest.mark.parametrize("kind", ["none", "features", "tower"])
def test_rounding_is_measured_with_the_text_that_there_is(texts, kind):
    sections = {
        "none": FeaturesBackbone(feature_dim=2),
        "features": texts(),
        "tower": FeaturesBackbone(text_tower="toy"),
    }
    model = PromptModel(sections[kind].load(), NAMES)
    found = _texts(model, torch.Generator().manual_seed(0))
    assert found.shape == (3, model.backbone.feature_dim)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
