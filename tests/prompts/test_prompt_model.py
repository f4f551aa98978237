import pytest
import torch

from hushprompt.errors import ConfigError
from hushprompt.models.toy import Toy
from hushprompt.prompts import prompt_model
from hushprompt.prompts.prompt_model import PromptModel


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


@pytest.mark.parametrize("at_once", [2, 32])
def test_template_features_are_those_of_the_written_sentence(at_once, model, monkeypatch):
    monkeypatch.setattr(prompt_model, "SEQUENCES_AT_ONCE", at_once)
    backbone, model = model.backbone, PromptModel(model.backbone, model.class_names)
    ids = [*backbone.start_ids, *backbone.tokenize("a kiwi"), *backbone.end_ids]
    expected = backbone.encode_prompts(backbone.embed(torch.tensor([ids])), torch.tensor([len(ids) - 1]))
    assert len(model.template_features) == model.num_classes
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


KINDS = [{}, {"is_causal": False}, {"is_causal": False, "sees_padding": True}]
NAMES = ("ant", "ox", "kiwi")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(backbone, name, context, position):
    """One class's sequence, token by token."""
    half = len(context) // 2
    name = backbone.embed(torch.tensor(backbone.tokenize(name)))
    middle = {
        "end": [context, name],
        "middle": [context[:half], name, context[half:]],
        "front": [name, context],
    }[position]
    start, end = (backbone.embed(torch.tensor(ids)) for ids in (backbone.start_ids, backbone.end_ids))
    prompt = torch.cat([start, *middle, end])
    ends = torch.tensor([len(prompt) - 1])
    if backbone.capabilities.sees_padding:
        padding = backbone.embed(torch.tensor([backbone.pad_id] * (backbone.capabilities.context_window - len(prompt))))
        prompt = torch.cat([prompt, padding])
    return backbone.encode_prompts(prompt[None], ends)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("shape", [(5,), (len(NAMES), 5)])
def test_every_layout_is_the_sequence_put_together_by_hand(kind, position, shape):
    model = PromptModel(Toy(**kind).load(), NAMES)
    context = random(*shape, model.token_width)
    each = context.expand(len(NAMES), -1, -1)
    expected = torch.cat([by_hand(model.backbone, n, each[y], position) for y, n in enumerate(NAMES)])
    torch.testing.assert_close(model.text_features(context, position), expected, rtol=1e-5, atol=1e-6)


def test_the_prefix_is_shared_only_where_that_is_exact(monkeypatch):
    model, context = PromptModel(Toy().load(), NAMES), random(4, 8)
    monkeypatch.setattr(model.backbone, "encode_shared_prefix", lambda *_: torch.zeros(len(NAMES), 6))
    assert not model.text_features(context).any()
    assert model.text_features(context, "middle").any()
    assert model.text_features(context, "front").any()
    assert model.text_features(context.expand(len(NAMES), 4, 8)).any()
    assert PromptModel(Toy(is_causal=False).load(), NAMES).text_features(context).any()


def test_each_class_feels_its_own_context_alone():
    model = PromptModel(Toy().load(), NAMES)
    context = random(len(NAMES), 3, 8)
    changed = context.clone()
    changed[1] += 1
    moved = (model.text_features(changed) - model.text_features(context)).norm(dim=1)
    assert moved[1] > 0.01
    assert moved[0] == moved[2] == 0


def test_a_layout_is_told_in_words():
    seen = PromptModel(Toy(is_causal=False, sees_padding=True).load(), NAMES)
    causal = PromptModel(Toy().load(), NAMES)
    one, each = torch.zeros(5, 8), torch.zeros(3, 5, 8)
    assert causal.layout(one) == "[start][context][class name][end]"
    assert causal.layout(one, "front") == "[start][class name][context][end]"
    assert causal.layout(each, "middle") == (
        "[start][first 2 vectors of the context][class name][rest of the context][end], one context for each class"
    )
    assert seen.layout(one) == "[start][context][class name][end][padding up to 40 tokens]"


def test_names_and_templates_that_cannot_be_encoded_are_refused():
    with pytest.raises(ConfigError, match="class name '' has no token"):
        PromptModel(Toy().load(), ("ant", ""))
    model = PromptModel(Toy().load(), ("ant", "b" * 37))
    with pytest.raises(ConfigError, match=r"class 'b{37}' needs 41 tokens with the template 'a \{\}'"):
        _ = model.template_features
    with pytest.raises(ConfigError, match="needs 43 tokens with num_ctx = 4"):
        model.text_features(torch.zeros(4, 8), "front")


def test_a_causal_toy_that_sees_padding_is_refused():
    with pytest.raises(ConfigError, match=r"sees_padding needs backbone\.is_causal = false"):
        Toy(sees_padding=True)
