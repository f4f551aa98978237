import pytest
import torch
import torch.nn.functional as F

from hushprompt.models.toy import Toy
from hushprompt.prompts.gradients import gradients_in_contexts, per_example_gradients
from hushprompt.prompts.prompt_model import PromptModel


def contexts_of(model, *shapes):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*shape, model.token_width, generator=generator) for shape in shapes)


def curved(model):
    """Logits that are no linear function of the text features."""

    def logits(text_features, image):
        scores = [model.logits(image[None], features)[0] for features in text_features]
        return torch.logsumexp(torch.stack(scores), dim=0) + 0.1 * scores[0] * scores[1]

    return logits


@pytest.mark.parametrize("position", ["end", "middle"])
@pytest.mark.parametrize("shapes", [((4,), (4,)), ((3,), (5, 3))])
@pytest.mark.parametrize("kind", [{}, {"is_causal": False, "sees_padding": True}])
def test_each_row_is_that_examples_own_gradient_in_each_context(model, batch, position, shapes, kind):
    model = PromptModel(Toy(**kind).load(), model.class_names)
    contexts, logits = contexts_of(model, *shapes), curved(model)
    fast, losses = gradients_in_contexts(model, contexts, logits, batch.image_features, batch.labels, position)
    for row, (image, label) in enumerate(zip(batch.image_features, batch.labels, strict=True)):
        leaves = tuple(context.clone().requires_grad_() for context in contexts)
        features = [model.backbone.encode_prompts(*model.plain_prompts(leaf, position)) for leaf in leaves]
        loss = F.cross_entropy(logits(features, image), label)
        assert float(losses[row]) == pytest.approx(float(loss.detach()), rel=1e-5)
        for quick, slow in zip(fast, torch.autograd.grad(loss, leaves), strict=True):
            assert (quick[row] - slow).norm() < 1e-4 * slow.norm()  # small where an example is sure


def test_with_one_context_and_the_cosine_it_is_the_plain_function(model, batch):
    (context,) = contexts_of(model, (4,))
    expected, expected_losses = per_example_gradients(model, context, batch.image_features, batch.labels)
    (got,), losses = gradients_in_contexts(
        model, (context,), lambda t, image: model.logits(image[None], t[0])[0], batch.image_features, batch.labels
    )
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(losses, expected_losses)


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_results_do_not_depend_on_how_a_batch_is_cut(model, batch, chunk, monkeypatch):
    contexts = contexts_of(model, (4,), (4,))
    whole = gradients_in_contexts(model, contexts, curved(model), batch.image_features, batch.labels)
    monkeypatch.setattr("hushprompt.prompts.gradients.examples_per_pass", lambda *_: chunk)
    cut = gradients_in_contexts(model, contexts, curved(model), batch.image_features, batch.labels)
    for left, right in zip((*whole[0], whole[1]), (*cut[0], cut[1]), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


def test_an_empty_batch_has_no_rows_and_contexts_are_left_alone(model, batch):
    contexts = contexts_of(model, (4,), (5, 4))
    before = [context.clone() for context in contexts]
    rows, losses = gradients_in_contexts(model, contexts, curved(model), batch.image_features[:0], batch.labels[:0])
    assert [row.shape for row in rows] == [(0, 4, 8), (0, 5, 4, 8)]
    assert losses.shape == (0,)
    gradients_in_contexts(model, contexts, curved(model), batch.image_features, batch.labels)
    for context, old in zip(contexts, before, strict=True):
        assert torch.equal(context, old)
        assert not context.requires_grad
