import pytest
import torch

from hushprompt.backbones.prompts import PromptModel
from hushprompt.backbones.toy import Toy
from hushprompt.errors import ConfigError


def test_the_fast_path_gives_the_plain_features_in_label_order(model):
    context = torch.randn(3, model.token_width, generator=torch.Generator().manual_seed(0))
    plain = model.backbone.encode_prompts(*model.plain_prompts(context))
    torch.testing.assert_close(model.text_features(context), plain, rtol=1e-5, atol=1e-6)


def test_one_class_has_the_same_feature_alone_and_among_others(model):
    context = torch.ones(3, model.token_width) * 0.1
    together = model.text_features(context)
    for label, name in enumerate(model.class_names):
        alone = PromptModel(model.backbone, (name,)).text_features(context)
        torch.testing.assert_close(together[label : label + 1], alone, rtol=1e-5, atol=1e-6)


def test_a_tower_that_is_not_causal_takes_the_general_path_and_padding_changes_nothing():
    backbone = Toy(is_causal=False).load()
    context = torch.ones(2, backbone.token_width) * 0.1
    together = PromptModel(backbone, ("a", "longname")).text_features(context)
    alone = PromptModel(backbone, ("a",)).text_features(context)
    torch.testing.assert_close(together[:1], alone, rtol=1e-5, atol=1e-6)


def test_template_features_are_those_of_the_written_sentence(model):
    backbone = model.backbone
    ids = [backbone.start_id, *backbone.tokenize("a kiwi"), backbone.end_id]
    expected = backbone.encode_prompts(backbone.embed(torch.tensor([ids])), torch.tensor([len(ids) - 1]))
    torch.testing.assert_close(model.template_features[2:3], expected)


def test_features_have_unit_norm_and_logits_are_scaled_cosines(model):
    features = model.text_features(torch.zeros(2, model.token_width))
    torch.testing.assert_close(features.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(model.logits(features, features).diagonal(), torch.full((5,), model.logit_scale))


def test_a_name_that_does_not_fit_the_window_is_named():
    model = PromptModel(Toy().load(), ("ant", "a" * 30))
    model.check_context(8)
    with pytest.raises(
        ConfigError, match=r"class 'a{30}' needs 41 tokens with num_ctx = 9, but the text tower takes 40"
    ):
        model.check_context(9)
