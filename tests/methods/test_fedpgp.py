import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hushprompt.errors import ConfigError, PrivacyError
from hushprompt.methods.base import Batch
from hushprompt.methods.fedpgp import FedPGP
from hushprompt.privacy.config import Channel, PrivacyConfig
from hushprompt.privacy.plan import make_plan
from hushprompt.privacy.sampling import PoissonSampler
from hushprompt.prompts.optimizer import Optimizer

SGD = Optimizer(learning_rate=0.1, momentum=0.0)


def rng(seed=0):
    return np.random.default_rng(seed)


def slow_contrast(model, leaves, method):
    """Two-way softmax cross-entropy of the positive, a class at a time, on one padded sequence a class."""
    context, u, v = leaves
    personal = context + (u @ v).view_as(context)
    of_global, of_personal = (
        model.backbone.encode_prompts(*model.plain_prompts(prompt, method.name_position))
        for prompt in (context, personal)
    )
    losses = []
    for row in range(model.num_classes):
        positive = F.cosine_similarity(of_global[row], model.template_features[row], dim=0)
        negative = F.cosine_similarity(of_global[row], of_personal[row], dim=0)
        scores = torch.stack([positive, negative]) / method.temperature
        losses.append(F.cross_entropy(scores[None], torch.tensor([0])))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("clip_norm", [0.05, 100.0])
@pytest.mark.parametrize("contrast_weight", [0.0, 2.0])
@pytest.mark.parametrize("layout", [{}, {"is_class_specific": True, "name_position": "middle"}])
def test_a_step_without_noise_is_the_papers_step_by_plain_autograd(
    model, batch, make_mechanism, clip_norm, contrast_weight, layout
):
    settings = {"global_optimizer": SGD, "local_optimizer": SGD, "init_std": 0.3, **layout}
    method = FedPGP(num_ctx=4, rank=2, contrast_weight=contrast_weight, **settings)
    shared, personal = method.init(model, rng())
    mechanism = make_mechanism(method.channels, Channel.LOCAL, noise=0.0, clip_norm=clip_norm, count=10.0)
    upload, stepped, _ = method.client_step(model, shared, personal, batch, mechanism, rng(1))

    leaves = [leaf.clone().requires_grad_() for leaf in (shared.context, personal.u, personal.v)]
    context, u, v = leaves
    sums = [torch.zeros_like(leaf) for leaf in leaves]
    for feature, label in zip(batch.image_features, batch.labels, strict=True):
        prompts = model.plain_prompts(context + (u @ v).view_as(context), method.name_position)
        loss = F.cross_entropy(model.logits(feature[None], model.backbone.encode_prompts(*prompts)), label[None])
        grad, grad_u, grad_v = torch.autograd.grad(loss, leaves)
        joint = float((grad_u.norm() ** 2 + grad_v.norm() ** 2).sqrt())
        sums[0] += grad * min(1.0, clip_norm / float(grad.norm()))
        sums[1] += grad_u * min(1.0, clip_norm / joint)
        sums[2] += grad_v * min(1.0, clip_norm / joint)
    contrast = torch.autograd.grad(slow_contrast(model, leaves, method), leaves)
    of_all = [total / 10 + contrast_weight * pull for total, pull in zip(sums, contrast, strict=True)]
    torch.testing.assert_close(upload.shared_grad.value / 10, of_all[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(stepped.u, personal.u - 0.1 * of_all[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(stepped.v, personal.v - 0.1 * of_all[2], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(method.server_step(shared, of_all[0]).context, shared.context - 0.1 * of_all[0])
    assert upload.shared_grad.sensitivity == clip_norm


def test_the_contrast_pulls_the_global_prompt_to_the_template_and_from_the_personal_one(model, batch, make_mechanism):
    optimizer = Optimizer(learning_rate=2.0, momentum=0.0)
    method = FedPGP(num_ctx=4, rank=2, init_std=0.3, global_optimizer=optimizer, local_optimizer=optimizer)
    shared, personal = method.init(model, rng())
    empty = Batch(batch.image_features[:0], batch.labels[:0])
    cosines = []
    for _ in range(10):
        features = [method.text_features(model, c) for c in (shared.context, method.context(shared, personal))]
        cosines.append([float((features[0] * other).sum(1).mean()) for other in (model.template_features, features[1])])
        local, server = (make_mechanism(method.channels, allowed, noise=0.0) for allowed in Channel)
        upload, personal, _ = method.client_step(model, shared, personal, empty, local, rng())
        shared = method.server_step(shared, server.release(Channel.GLOBAL, upload.shared_grad).value)
    assert cosines[-1][0] - cosines[-1][1] > cosines[0][0] - cosines[0][1] + 0.05


def test_clients_of_unequal_size_pull_by_their_size(model, batch, make_mechanism):
    method = FedPGP(num_ctx=4, rank=2, init_std=0.3)
    shared, personal = method.init(model, rng())
    empty = Batch(batch.image_features[:0], batch.labels[:0])
    uploads = []
    for count in (10.0, 30.0):
        mechanism = make_mechanism(method.channels, Channel.LOCAL, count=count)
        uploads.append(method.client_step(model, shared, personal, empty, mechanism, rng())[0].shared_grad.value)
    torch.testing.assert_close(3 * uploads[0], uploads[1])


def test_a_contrast_of_a_clients_prompt_is_no_client_level_release(model, batch):
    config = PrivacyConfig(
        noise_source="seeded",
        epsilon=None,
        noise_multiplier_local=0.0,
        noise_multiplier_global=1.0,
        privacy_unit="client",
    )
    sampler = PoissonSampler(sampling_prob=0.5)
    plan = make_plan(config, sampler, channels=FedPGP.channels, num_rounds=1, client_sizes=[9])
    first, second = (plan.mechanism(allowed=Channel.LOCAL, expected_count=5.0, rng=rng()) for _ in range(2))
    method, plain = FedPGP(num_ctx=4, rank=2), FedPGP(num_ctx=4, rank=2, contrast_weight=0.0)
    states = method.init(model, rng())
    with pytest.raises(PrivacyError, match=r"would leave clients unclipped\. Use privacy\.privacy_unit = .example"):
        method.client_step(model, *states, batch, first, rng())
    upload, _, _ = plain.client_step(model, *states, batch, second, rng())
    assert float(upload.shared_grad.value.norm()) <= 1.0


def test_the_personal_term_has_the_rank_asked_for(model):
    shared, personal = FedPGP(num_ctx=4, rank=1).init(model, rng())
    values = torch.linalg.svdvals(FedPGP().context(shared, personal) - shared.context)
    assert values[1] < 1e-5 * values[0]


def test_impossible_settings_are_refused(model):
    with pytest.raises(ConfigError, match=r"rank must be at most min\(num_ctx, token width\)"):
        FedPGP(num_ctx=4, rank=5).init(model, rng())
    for settings in ({"rank": 0}, {"temperature": 0.0}, {"contrast_weight": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            FedPGP(**settings)
