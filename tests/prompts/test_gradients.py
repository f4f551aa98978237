import pytest
import torch
import torch.nn.functional as F

from helpers.reference import slow_gradients
from hushprompt.config import parse as config
from hushprompt.methods.base import Batch
from hushprompt.models.placing import step_memory_mb
from hushprompt.models.toy import Toy
from hushprompt.prompts.gradients import examples_per_pass, per_example_gradients
from hushprompt.prompts.prompt_model import PromptModel


@pytest.mark.parametrize("is_causal", [True, False])
def test_each_row_is_that_examples_own_gradient(model, batch, is_causal):
    model = PromptModel(Toy(is_causal=is_causal).load(), model.class_names)
    context = torch.randn(4, model.token_width, generator=torch.Generator().manual_seed(0))
    fast, losses = per_example_gradients(model, context, batch.image_features, batch.labels)
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
    fast, _ = per_example_gradients(model, context, batch.image_features, batch.labels, position)
    slow = slow_gradients(model, context, batch, position)
    assert fast.shape == (7, *context.shape)
    for quick_row, slow_row in zip(fast, slow, strict=True):
        assert (quick_row - slow_row).norm() < 1e-5 * slow_row.norm()


def test_an_example_does_not_feel_the_others(model, batch):
    context = torch.ones(3, model.token_width) * 0.1
    together, _ = per_example_gradients(model, context, batch.image_features, batch.labels)
    alone, _ = per_example_gradients(model, context, batch.image_features[2:3], batch.labels[2:3])
    torch.testing.assert_close(together[2:3], alone, rtol=1e-5, atol=1e-7)


def test_an_empty_batch_has_no_rows(model, batch):
    empty = Batch(batch.image_features[:0], batch.labels[:0])
    grads, losses = per_example_gradients(model, torch.zeros(3, model.token_width), empty.image_features, empty.labels)
    assert grads.shape == (0, 3, model.token_width)
    assert losses.shape == (0,)


def test_the_context_is_left_alone(model, batch):
    context = torch.ones(3, model.token_width)
    per_example_gradients(model, context, batch.image_features, batch.labels)
    assert not context.requires_grad
    assert torch.equal(context, torch.ones(3, model.token_width))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("is_causal", [True, False])
def test_results_do_not_depend_on_how_a_batch_is_cut(model, batch, chunk, is_causal, monkeypatch):
    model = PromptModel(Toy(is_causal=is_causal).load(), model.class_names)
    context = torch.randn(4, model.token_width, generator=torch.Generator().manual_seed(0))
    whole, losses = per_example_gradients(model, context, batch.image_features, batch.labels)
    monkeypatch.setattr("hushprompt.prompts.gradients.examples_per_pass", lambda *_: chunk)
    cut, cut_losses = per_example_gradients(model, context, batch.image_features, batch.labels)
    assert (cut - whole).norm() <= 1e-6 * whole.norm()
    assert torch.equal(cut_losses, losses)


def test_memory_decides_how_many_examples_go_at_once(model):
    context = torch.zeros(4, model.token_width)
    one = 4 * 32 * model.num_tokens(context) * model.token_width
    assert examples_per_pass(model, context) > 10**9
    for memory_mb in (1, 50):
        limited = PromptModel(model.backbone, model.class_names, memory_mb=memory_mb)
        assert examples_per_pass(limited, context) == memory_mb * 2**20 // one > 1
    own = context.expand(model.num_classes, -1, -1)  # a context for each class shares nothing
    assert model.num_tokens(own) > model.num_tokens(context)
    many = PromptModel(model.backbone, model.class_names * 10**4, memory_mb=1)
    assert examples_per_pass(many, context) == 1


def test_the_presets_batches_go_in_one_pass():
    preset = config.load(config.locate(None))
    model = PromptModel(
        preset.backbone.load(),
        preset.data.load().class_names,
        memory_mb=step_memory_mb(preset.runtime.memory_mb, "cpu"),
    )
    context = torch.zeros(preset.method.num_ctx, model.token_width)
    assert examples_per_pass(model, context) >= 40  # expected batch: 20
