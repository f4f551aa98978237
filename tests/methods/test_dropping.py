import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hushprompt.config import parse as config
from hushprompt.errors import ConfigError
from hushprompt.methods.base import Batch
from hushprompt.methods.dp_fpl import DPFPL
from hushprompt.methods.promptfl import PromptFL
from hushprompt.models.embedded import EmojiClip
from hushprompt.models.toy import Toy
from hushprompt.privacy.clipping import clipped_sum
from hushprompt.privacy.config import Channel
from hushprompt.prompts.gradients import per_example_gradients
from hushprompt.prompts.prompt_model import PromptModel

NAMES = ("red apple", "cat", "smiling face with sunglasses", "dog", "tree", "car", "fish")
THRESHOLD = 0.12


@pytest.fixture(scope="module", params=[Toy, EmojiClip])
def model(request):
    """A model whose backward pass goes through all pairs, and one that gathers those with a weight."""
    return PromptModel(request.param().load(), NAMES)


@pytest.fixture
def batch(model):
    features = F.normalize(torch.randn(9, model.backbone.feature_dim, generator=torch.Generator().manual_seed(0)))
    return Batch(features, torch.arange(9) % len(NAMES))


@pytest.fixture
def context(model):
    return 0.1 * torch.randn(4, model.token_width, generator=torch.Generator().manual_seed(1))


def slow_gradients(model, context, batch, drop_below):
    """One example at a time: the kept classes of its cotangent, plain autograd through one sequence a class."""
    rows, num_dropped = [], 0
    for feature, label in zip(batch.image_features, batch.labels, strict=True):
        leaf = context.clone().requires_grad_()
        text_features = model.backbone.encode_prompts(*model.plain_prompts(leaf))
        logits = model.logits(feature[None], text_features)[0]
        residual = logits.detach().softmax(dim=0)
        residual[label] -= 1
        kept = residual.abs() >= drop_below
        num_dropped += int((~kept).sum())
        rows.append(torch.autograd.grad((residual * kept * logits).sum(), leaf)[0])
    return torch.stack(rows), num_dropped


@pytest.mark.parametrize("drop_below", [0.0, THRESHOLD, 0.9])
def test_a_gradient_is_that_of_the_kept_classes(model, batch, context, drop_below):
    slow, num_dropped = slow_gradients(model, context, batch, drop_below)
    fast, losses = per_example_gradients(model, context, batch, drop_below=drop_below)
    assert (num_dropped > 0) == (drop_below > 0)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-6)
    assert torch.equal(losses, per_example_gradients(model, context, batch)[1])


def test_which_classes_are_dropped_is_decided_by_the_example_alone(model, batch, context):
    together, _ = per_example_gradients(model, context, batch, drop_below=THRESHOLD)
    for index in range(len(batch.labels)):
        one = Batch(batch.image_features[index : index + 1], batch.labels[index : index + 1])
        alone, _ = per_example_gradients(model, context, one, drop_below=THRESHOLD)
        torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("clip_norm", [0.01, 1.0])
def test_one_example_moves_a_clipped_sum_by_the_clip_norm_at_most(model, batch, context, clip_norm):
    def summed(rows):
        chosen = Batch(batch.image_features[rows], batch.labels[rows])
        return clipped_sum(per_example_gradients(model, context, chosen, drop_below=THRESHOLD)[0], clip_norm)

    whole = summed(torch.arange(9))
    assert whole.sensitivity == clip_norm
    for left_out in range(9):
        rest = summed(torch.tensor([row for row in range(9) if row != left_out]))
        assert (whole.value - rest.value).norm() <= clip_norm * (1 + 1e-5)


def test_methods_hand_their_threshold_on(model, batch, context, make_mechanism):
    mechanism = make_mechanism(PromptFL.channels, Channel.GLOBAL, noise=0.0, clip_norm=1e6, count=1.0)
    sums = []
    for drop_below in (0.0, THRESHOLD):
        method = PromptFL(num_ctx=4, drop_below=drop_below)
        shared, personal = method.init(model, np.random.default_rng(0))
        upload, *_ = method.client_step(model, shared, personal, batch, mechanism, np.random.default_rng(0))
        grads, _ = per_example_gradients(model, shared.context, batch, drop_below=drop_below)
        torch.testing.assert_close(upload.shared_grad.value, grads.sum(dim=0))
        sums.append(upload.shared_grad.value)
    assert (sums[0] - sums[1]).norm() > 1e-3 * sums[0].norm()


def test_the_threshold_is_part_of_what_a_run_is():
    preset = config.locate(None)
    exact, dropping = (config.load(preset, [f"method.drop_below={value}"]) for value in (0.0, 0.01))
    assert exact.identity() != dropping.identity()
    assert exact.identity() == config.load(preset).identity()


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_a_threshold_that_is_no_probability_is_refused(value):
    with pytest.raises(ConfigError, match=r"drop_below must lie in \[0, 1\)"):
        DPFPL(drop_below=value)


def test_a_method_that_cannot_drop_pairs_does_not_know_the_key():
    with pytest.raises(ConfigError, match="Unknown key 'drop_below'"):
        config.load(config.locate(None), ["method.name=promptfolio", "method.drop_below=0.1"])
