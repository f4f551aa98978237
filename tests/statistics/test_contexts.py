"""Contexts fitted to embeddings through a frozen text tower."""

import pytest
import torch
import torch.nn.functional as F

from hushprompt.errors import ConfigError
from hushprompt.models.toy import Toy
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.statistics.contexts import fit_class_contexts, fit_context, fit_shared_context, template_words


@pytest.fixture(scope="module")
def model():
    return PromptModel(Toy().load(), ("circle", "square", "star"))


def target(model):
    noise = torch.randn(model.template_features.shape, generator=torch.Generator().manual_seed(0))
    return F.normalize(model.template_features.double() + 0.3 * noise, dim=1)


def test_class_specific_contexts_come_closer_than_the_template_and_than_one_for_all(model):
    embeddings = target(model)
    start = (model.text_features(template_words(model)) * embeddings).sum(dim=1).detach()
    own, shared = fit_class_contexts(model, embeddings), fit_shared_context(model, embeddings)
    assert own.context.shape == (3, *template_words(model).shape)
    assert shared.context.shape == template_words(model).shape
    assert (own.cosines > start).all()
    assert own.cosines.sum() > shared.cosines.sum() > start.sum()
    torch.testing.assert_close((model.text_features(own.context) * embeddings).sum(1).float(), own.cosines.float())


def test_contexts_are_plain_tensors_that_depend_on_nothing_random(model):
    first, again = (fit_class_contexts(model, target(model), num_steps=3) for _ in range(2))
    assert torch.equal(first.context, again.context)
    assert not first.context.requires_grad
    with torch.no_grad():
        assert torch.equal(fit_class_contexts(model, target(model), num_steps=3).context, first.context)


def test_settings_are_checked(model):
    with pytest.raises(ConfigError, match="num_steps"):
        fit_context(model, target(model), template_words(model), 0, 0.1)
    with pytest.raises(ConfigError):
        fit_context(model, target(model), torch.zeros(500, model.token_width), 1, 0.1)
