import numpy as np
import pytest
import torch

from hushprompt.errors import ConfigError
from hushprompt.methods.context import ContextConfig
from hushprompt.methods.dp_fpl import DPFPL


def rng():
    return np.random.default_rng(0)


def test_words_become_their_token_embeddings(model):
    backbone = model.backbone
    start = ContextConfig(num_ctx=3, init_words="abc").first_context(model, rng())
    assert torch.equal(start, backbone.embed(torch.tensor(backbone.tokenize("abc"))))


def test_a_prompt_of_words_is_the_written_sentence(model):
    start, backbone = ContextConfig(num_ctx=3, init_words="abc").first_context(model, rng()), model.backbone
    for name, feature in zip(model.class_names, model.text_features(start), strict=True):
        ids = [*backbone.start_ids, *backbone.tokenize(f"abc{name}"), *backbone.end_ids]
        written = backbone.encode_prompts(backbone.embed(torch.tensor([ids])), torch.tensor([len(ids) - 1]))
        torch.testing.assert_close(feature, written[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_class_specific_contexts_start_alike_from_words_and_apart_from_noise(model, position):
    words = ContextConfig(num_ctx=3, init_words="abc", is_class_specific=True, name_position=position)
    start = words.first_context(model, rng())
    assert start.shape == (5, 3, 8)
    assert all(torch.equal(start[0], other) for other in start)
    drawn = ContextConfig(num_ctx=3, is_class_specific=True, init_std=0.5).first_context(model, rng())
    assert drawn.shape == (5, 3, 8)
    assert float(drawn.std()) == pytest.approx(0.5, rel=0.2)
    assert not torch.equal(drawn[0], drawn[1])


def test_words_need_as_many_vectors_as_tokens(model):
    with pytest.raises(ConfigError, match=r"init_words = 'abc' has 3 token\(s\) .*num_ctx is 16\. Set num_ctx = 3"):
        ContextConfig(init_words="abc").first_context(model, rng())
    with pytest.raises(ConfigError, match=r"class 'kiwi'|class 'lynx'"):
        ContextConfig(num_ctx=35, init_words="a" * 35).first_context(model, rng())


def test_dp_fpl_gives_words_to_the_global_prompt_alone(model):
    shared, personal = DPFPL(num_ctx=3, rank=2, init_words="abc").init(model, rng())
    assert torch.equal(shared.context, ContextConfig(num_ctx=3, init_words="abc").first_context(model, rng()))
    assert 0 < float(personal.context.std()) < 0.04
