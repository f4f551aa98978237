"""Contexts fitted to embeddings through a frozen text tower."""

import pytest
import torch
import torch.nn.functional as F

from hushprompt.errors import ConfigError
from hushprompt.models.toy import Toy
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.statistics.contexts import (
    EstimatedClasses,
    fit_class_contexts,
    fit_shared_context,
    template_words,
)
from hushprompt.statistics.metric import Metric


@pytest.fixture(scope="module")
def model():
    return PromptModel(Toy().load(), ("circle", "square", "star"))


def target(model):
    noise = torch.randn(model.template_features.shape, generator=torch.Generator().manual_seed(0))
    return F.normalize(model.template_features.double() + 0.3 * noise, dim=1)


def classes_of(model):
    """Classes in a made-up metric whose directions are those of the features."""
    eye = torch.eye(model.template_features.shape[1], dtype=torch.float64)
    nothing = torch.zeros(len(eye), dtype=torch.float64)
    metric = Metric(
        eye, eye, nothing, constant=nothing, unused=nothing, within=nothing, between=1.0,
        clip_mean=1.0, clip_residual=1.0, kappa=1.0,
    )  # fmt: skip
    return EstimatedClasses(metric, target(model), torch.full((len(eye),), 0.01, dtype=torch.float64))


def test_class_specific_contexts_come_closer_than_the_template(model):
    embeddings = target(model)
    start = (model.text_features(template_words(model)) * embeddings).sum(dim=1).detach()
    own = fit_class_contexts(model, embeddings)
    assert own.shape == (3, *template_words(model).shape)
    assert ((model.text_features(own) * embeddings).sum(dim=1) > start).all()


def test_a_shared_context_learns_drawn_images_from_any_start(model):
    classes = classes_of(model)
    images, labels = classes.draw(20, torch.Generator().manual_seed(7)), torch.arange(3).repeat_interleave(20)
    torch.testing.assert_close(images.norm(dim=1), torch.ones(60))
    center = F.normalize(images.view(3, 20, -1).mean(dim=1), dim=1)
    torch.testing.assert_close(center, classes.means.float(), rtol=0, atol=0.2)

    def loss(context):
        with torch.no_grad():
            return F.cross_entropy(model.logits(images, model.text_features(context)), labels)

    for start in (None, 0.02 * torch.randn(5, model.token_width, generator=torch.Generator().manual_seed(1))):
        context = fit_shared_context(model, classes, start, num_steps=30)
        first = template_words(model) if start is None else start
        assert context.shape == first.shape
        assert loss(context) < loss(first)
        assert torch.equal(context, fit_shared_context(model, classes, start, num_steps=30))


def test_contexts_are_plain_tensors_that_depend_on_nothing_random(model):
    first, again = (fit_class_contexts(model, target(model), num_steps=3) for _ in range(2))
    assert torch.equal(first, again)
    assert not first.requires_grad
    with torch.no_grad():
        assert torch.equal(fit_class_contexts(model, target(model), num_steps=3), first)


def test_settings_are_checked(model):
    with pytest.raises(ConfigError, match="num_steps"):
        fit_class_contexts(model, target(model), num_steps=0)
    with pytest.raises(ConfigError):
        fit_shared_context(model, classes_of(model), torch.zeros(500, model.token_width), num_steps=1)
