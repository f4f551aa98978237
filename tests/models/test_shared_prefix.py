import pytest
import torch
import torch.nn.functional as F

from helpers.reference import slow_gradients
from hushprompt.methods.base import Batch
from hushprompt.models import shared_prefix
from hushprompt.models.embedded import EmojiClip
from hushprompt.prompts.gradients import per_example_gradients
from hushprompt.prompts.prompt_model import PromptModel


@pytest.fixture(scope="module")
def embedded():
    return PromptModel(EmojiClip().load(), ("red apple", "cat", "smiling face with sunglasses", "dog"))


def contexts(model, count):
    return 0.02 * torch.randn(count, 4, model.token_width, generator=torch.Generator().manual_seed(0))


def test_a_pass_is_kept_for_its_context_alone(embedded):
    first, second = contexts(embedded, 2)
    kept = embedded.text_pass(first)
    assert embedded.text_pass(first.clone()) is kept
    assert embedded.text_pass(second) is not kept
    assert torch.equal(embedded.text_features(first), kept.features)
    fresh = PromptModel(embedded.backbone, embedded.class_names).text_features(first)
    torch.testing.assert_close(fresh, kept.features)


def test_the_oldest_pass_goes_first(embedded, monkeypatch):
    monkeypatch.setattr(shared_prefix, "NUM_KEPT", 2)
    first, second, third = contexts(embedded, 3)
    kept = [embedded.text_pass(context) for context in (first, second, first, third)]
    assert embedded.text_pass(third) is kept[3]
    assert embedded.text_pass(first) is kept[0]
    assert embedded.text_pass(second) is not kept[1]


def test_features_stay_differentiable(embedded):
    leaf = contexts(embedded, 1)[0].requires_grad_()
    with torch.no_grad():
        embedded.text_features(leaf)  # leaves a pass behind
    embedded.text_features(leaf)[0, 0].backward()
    assert leaf.grad.norm() > 0


def test_the_embedded_towers_gradients_are_those_of_plain_autograd(embedded):
    (context,) = contexts(embedded, 1)
    features = F.normalize(torch.randn(5, embedded.backbone.feature_dim, generator=torch.Generator().manual_seed(1)))
    batch = Batch(features, torch.tensor([0, 1, 2, 3, 1]))
    for _ in range(2):  # from a new pass, and from the kept one
        fast, _ = per_example_gradients(embedded, context, batch)
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
