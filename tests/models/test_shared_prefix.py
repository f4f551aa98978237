import pytest
import torch
import torch.nn.functional as F

from helpers.reference import slow_gradients
from hushprompt.methods.base import Batch
from hushprompt.models.embedded import EmojiClip
from hushprompt.prompts.gradients import per_example_gradients
from hushprompt.prompts.prompt_model import PromptModel


@pytest.fixture(scope="module")
def embedded():
    return PromptModel(EmojiClip().load(), ("red apple", "cat", "smiling face with sunglasses", "dog"))


def contexts(model, count):
    return 0.02 * torch.randn(count, 4, model.token_width, generator=torch.Generator().manual_seed(0))


def test_features_stay_differentiable(embedded):
    leaf = contexts(embedded, 1)[0].requires_grad_()
    embedded.text_features(leaf)[0, 0].backward()
    assert leaf.grad.norm() > 0


def test_the_embedded_towers_gradients_are_those_of_plain_autograd(embedded):
    (context,) = contexts(embedded, 1)
    features = F.normalize(torch.randn(5, embedded.backbone.feature_dim, generator=torch.Generator().manual_seed(1)))
    batch = Batch(features, torch.tensor([0, 1, 2, 3, 1]))
    fast, _ = per_example_gradients(embedded, context, batch.image_features, batch.labels)
    for fast_row, slow_row in zip(fast, slow_gradients(embedded, context, batch), strict=True):
        assert (fast_row - slow_row).norm() < 1e-5 * slow_row.norm()


def test_cotangents_of_any_form_go_back_in_the_order_of_the_labels(embedded):
    (context,) = contexts(embedded, 1)
    cotangents = torch.randn(3, 4, embedded.backbone.feature_dim, generator=torch.Generator().manual_seed(1))
    leaf = context.clone().requires_grad_()
    features = embedded.backbone.encode_prompts(*embedded.plain_prompts(leaf))
    for fast, cotangent in zip(embedded.text_pass(context).pull_back_matrices(cotangents), cotangents, strict=True):
        (slow,) = torch.autograd.grad(features, leaf, cotangent, retain_graph=True)
        assert (fast - slow).norm() < 1e-5 * slow.norm()
