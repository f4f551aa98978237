import pytest
import torch
import torch.nn.functional as F

from hushprompt.backbones.prompts import PromptModel
from hushprompt.backbones.toy import Toy
from hushprompt.methods import gradients
from hushprompt.methods.base import Batch
from hushprompt.methods.gradients import per_example_gradients
from slow_twins import slow_gradients


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("chunk", [2, 64])
def test_each_row_is_that_examples_own_gradient(model, batch, is_causal, chunk, monkeypatch):
    monkeypatch.setattr(gradients, "CHUNK", chunk)
    model = PromptModel(Toy(is_causal=is_causal).load(), model.class_names)
    context = torch.randn(4, model.token_width, generator=torch.Generator().manual_seed(0))
    fast, losses = per_example_gradients(model, context, batch)
    slow = slow_gradients(model, context, batch)
    for quick_row, slow_row in zip(fast, slow, strict=True):
        assert (quick_row - slow_row).norm() < 1e-5 * slow_row.norm()
    logits = model.logits(batch.image_features, model.text_features(context))
    torch.testing.assert_close(losses, F.cross_entropy(logits, batch.labels, reduction="none"))


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("shape", [(3,), (5, 3)])
@pytest.mark.parametrize("kind", [{}, {"is_causal": False, "sees_padding": True}])
def test_each_row_is_that_examples_own_gradient_in_every_layout(model, batch, position, shape, kind):
    model = PromptModel(Toy(**kind).load(), model.class_names)
    context = torch.randn(*shape, model.token_width, generator=torch.Generator().manual_seed(0))
    fast, _ = per_example_gradients(model, context, batch, position)
    slow = slow_gradients(model, context, batch, position)
    assert fast.shape == (7, *context.shape)
    for quick_row, slow_row in zip(fast, slow, strict=True):
        assert (quick_row - slow_row).norm() < 1e-5 * slow_row.norm()


def test_an_example_does_not_feel_the_others(model, batch):
    context = torch.ones(3, model.token_width) * 0.1
    together, _ = per_example_gradients(model, context, batch)
    alone, _ = per_example_gradients(model, context, Batch(batch.image_features[2:3], batch.labels[2:3]))
    torch.testing.assert_close(together[2:3], alone, rtol=1e-5, atol=1e-7)


def test_an_empty_batch_has_no_rows(model, batch):
    empty = Batch(batch.image_features[:0], batch.labels[:0])
    grads, losses = per_example_gradients(model, torch.zeros(3, model.token_width), empty)
    assert grads.shape == (0, 3, model.token_width)
    assert losses.shape == (0,)


def test_the_context_is_left_alone(model, batch):
    context = torch.ones(3, model.token_width)
    per_example_gradients(model, context, batch)
    assert not context.requires_grad
    assert torch.equal(context, torch.ones(3, model.token_width))
