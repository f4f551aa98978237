import numpy as np
import ot
import pytest
import torch
import torch.nn.functional as F

from hushprompt.methods.base import Batch
from hushprompt.methods.fedotp import FedOTP, aligned_logits
from hushprompt.models.toy import Toy
from hushprompt.privacy.config import Channel
from hushprompt.privacy.mechanisms.observed import WrappedMechanism
from hushprompt.prompts.optimizer import Optimizer
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.prompts.transport import Transport

SGD = Optimizer(learning_rate=0.1, momentum=0.0)
LAYOUTS = [{}, {"is_class_specific": True, "name_position": "middle"}]


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def batch(model):
    """Seven examples of nine patches each."""
    features = torch.from_numpy(rng(5).normal(size=(7, 9, model.backbone.feature_dim))).float()
    return Batch(F.normalize(features, dim=-1), torch.tensor([0, 1, 2, 3, 4, 0, 2]))


def pots_plan(cosines, transport):
    """POT's plan of one class's patches [m] and prompts [p]."""
    num_patches, num_prompts = cosines.shape
    patches, prompts = np.full(num_patches, 1 / num_patches), np.full(num_prompts, transport.mass / num_prompts)
    cost, settings = 1 - cosines.detach().double().numpy(), {"numItermax": 20_000, "stopThr": 1e-13}
    if transport.mass == 1:
        return ot.sinkhorn(patches, prompts, cost, transport.regularization, **settings)
    return ot.partial.entropic_partial_wasserstein(
        patches, prompts, cost, transport.regularization, m=transport.mass - 1e-12, **settings
    )


def slow_logits(model, contexts, patches, transport, name_position):
    """One class at a time: POT's plan as a constant, cosines by plain autograd through one padded sequence a class."""
    text = [model.backbone.encode_prompts(*model.plain_prompts(context, name_position)) for context in contexts]
    logits = []
    for label in range(model.num_classes):
        cosines = torch.stack([patches @ features[label] for features in text], dim=1)  # [m, p]
        plan = torch.from_numpy(pots_plan(cosines, transport)).float()
        logits.append(model.logit_scale * (plan * cosines).sum())
    return torch.stack(logits)


def slow_gradients(model, contexts, batch, transport, name_position):
    """One example at a time."""
    rows = []
    for patches, label in zip(batch.image_features, batch.labels, strict=True):
        leaves = [context.clone().requires_grad_() for context in contexts]
        logits = slow_logits(model, leaves, patches, transport, name_position)
        rows.append(torch.autograd.grad(F.cross_entropy(logits[None], label[None]), leaves))
    return [torch.stack(of_one) for of_one in zip(*rows, strict=True)]


@pytest.mark.parametrize("mass", [1.0, 0.8])
@pytest.mark.parametrize("clip_norm", [0.05, 100.0])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_without_noise_is_the_papers_step_by_plain_autograd_and_pot(
    model, batch, make_mechanism, mass, clip_norm, layout
):
    transport = Transport(mass=mass, num_iterations=2000)
    settings = {"global_optimizer": SGD, "local_optimizer": SGD, "init_std": 0.5, **layout}
    method = FedOTP(num_ctx=4, transport=transport, **settings)
    shared, personal = method.init(model, rng())
    assert not torch.equal(shared.context, personal.context)
    mechanism = make_mechanism(method.channels, Channel.LOCAL, noise=0.0, clip_norm=clip_norm, count=10.0)
    upload, stepped, info = method.client_step(model, shared, personal, batch, mechanism, rng(1))

    contexts = (shared.context, personal.context)
    sums = []
    for rows in slow_gradients(model, contexts, batch, transport, method.name_position):
        sums.append(sum(grad * min(1.0, clip_norm / float(grad.norm())) for grad in rows))
    expected = personal.context - 0.1 * sums[1] / 10
    torch.testing.assert_close(stepped.context, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(upload.shared_grad.value, sums[0], rtol=1e-3, atol=1e-4 * float(sums[0].abs().max()))
    torch.testing.assert_close(method.server_step(shared, sums[0]).context, shared.context - 0.1 * sums[0])
    slow = torch.stack([slow_logits(model, contexts, x, transport, method.name_position) for x in batch.image_features])
    fast = method.logits(model, shared, personal, batch.image_features)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)
    assert info.loss == pytest.approx(float(F.cross_entropy(slow, batch.labels)), rel=1e-4)


def step_gradients(method, model, batch, make_mechanism):
    """What a step gives to clipping, by channel."""
    heard = {}

    class Listening(WrappedMechanism):
        def clip(self, channel, grads):
            heard[channel] = grads
            return self.inner.clip(channel, grads)

    spy = Listening(make_mechanism(method.channels, Channel.LOCAL))
    method.client_step(model, *method.init(model, rng()), batch, spy, rng())
    return heard


@pytest.mark.parametrize("is_causal", [True, False])
def test_an_example_does_not_feel_the_others_not_even_through_its_plan(model, batch, make_mechanism, is_causal):
    """What clipping per example rests on."""
    model, method = PromptModel(Toy(is_causal=is_causal).load(), model.class_names), FedOTP(num_ctx=4, init_std=0.5)
    together = step_gradients(method, model, batch, make_mechanism)
    for index in range(7):
        one = Batch(batch.image_features[index : index + 1], batch.labels[index : index + 1])
        for channel, grads in step_gradients(method, model, one, make_mechanism).items():
            assert (grads[0] - together[channel][index]).norm() < 1e-5 * grads.norm()


@pytest.mark.parametrize("num_costs", [1, 90, 300, 10**6])
def test_scores_do_not_depend_on_how_images_are_cut(model, batch, num_costs, monkeypatch):
    method = FedOTP(num_ctx=4, init_std=0.5)
    states = method.init(model, rng())
    features = torch.stack([model.text_features(state.context) for state in states])
    whole = aligned_logits(model, features, batch.image_features, method.transport)
    monkeypatch.setattr("hushprompt.methods.fedotp.COSTS_PER_PASS", num_costs)
    cut = method.logits(model, *states, batch.image_features)
    torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-5)


def test_with_one_patch_and_all_mass_it_scores_by_the_mean_of_both_prompts(model, batch):
    method = FedOTP(num_ctx=4, init_std=0.5, transport=Transport(mass=1.0))
    shared, personal = method.init(model, rng())
    image = batch.image_features[:, 0]
    logits = method.logits(model, shared, personal, image[:, None])
    mean = (model.text_features(shared.context) + model.text_features(personal.context)) / 2
    torch.testing.assert_close(logits, model.logits(image, mean), rtol=1e-4, atol=1e-4)


def test_a_clients_file_holds_both_prompts_and_the_public_one_the_global_alone(model):
    method = FedOTP(num_ctx=4)
    shared, personal = method.init(model, rng())
    public, mine = method.public_file(model, shared), method.personal_file(model, shared, personal)
    assert set(public.tensors) == {"context"}
    assert torch.equal(public.tensors["context"], shared.context)
    assert torch.equal(mine.tensors["global_context"], shared.context)
    assert torch.equal(mine.tensors["local_context"], personal.context)
    assert "mass 0.8 and entropy weight 0.1" in mine.prompt
