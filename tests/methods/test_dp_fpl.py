import numpy as np
import pytest
import torch

from helpers.reference import slow_gradients
from hushprompt.errors import ConfigError
from hushprompt.methods.context import fresh
from hushprompt.methods.dp_fpl import DPFPL
from hushprompt.methods.promptfl import PromptFL
from hushprompt.privacy.config import Channel
from hushprompt.prompts.factorization import factorize
from hushprompt.prompts.optimizer import Optimizer

SGD = Optimizer(learning_rate=0.1, momentum=0.0)
FORMS = [("factors", "projection"), ("factors", "orthonormal"), ("factors", "svd"), ("tangent", "orthonormal")]


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("update", "form"), FORMS)
@pytest.mark.parametrize("clip_norm", [0.05, 100.0])
@pytest.mark.parametrize("layout", [{}, {"is_class_specific": True, "name_position": "middle"}])
def test_a_step_without_noise_is_the_papers_step_by_plain_autograd(
    model, batch, make_mechanism, update, form, clip_norm, layout
):
    settings = {"global_optimizer": SGD, "local_optimizer": SGD, **layout}
    method = DPFPL(num_ctx=4, rank=2, factorization=form, update=update, **settings)
    shared, personal = method.init(model, rng())
    mechanism = make_mechanism(method.channels, Channel.LOCAL, noise=0.0, clip_norm=clip_norm, count=10.0)
    upload, stepped, _ = method.client_step(model, shared, personal, batch, mechanism, rng(1))

    stacked = personal.context.reshape(-1, 8)  # all classes' contexts below each other
    factors = factorize(stacked, 2, form=form, power_iterations=1, rng=rng(1))
    u, v = factors.u, factors.v
    sum_u, sum_v, sum_g = torch.zeros_like(u), torch.zeros_like(v), torch.zeros_like(stacked)
    for grad in slow_gradients(model, shared.context + personal.context, batch, method.name_position):
        grad = grad.reshape(-1, 8)
        grad_u, grad_v = grad @ v.T, u.T @ grad
        joint = (grad_u.norm() ** 2 + grad_v.norm() ** 2).sqrt()
        sum_u += grad_u * min(1.0, clip_norm / float(joint))
        sum_v += grad_v * min(1.0, clip_norm / float(joint))
        sum_g += grad * min(1.0, clip_norm / float(grad.norm()))
    if update == "factors":
        expected = (u - 0.1 * sum_u / 10) @ (v - 0.1 * sum_v / 10) + factors.residual
    else:
        tangent = sum_u @ v + u @ sum_v - u @ u.T @ sum_u @ v
        expected = stacked - 0.1 * tangent / 10
    shape, sum_g = personal.context.shape, sum_g.view_as(personal.context)
    torch.testing.assert_close(stepped.context, expected.view(shape), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(upload.shared_grad.value, sum_g, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(method.server_step(shared, sum_g).context, shared.context - 0.1 * sum_g)


def test_the_tangent_update_at_full_rank_is_the_full_gradient(model, batch, make_mechanism):
    method = DPFPL(num_ctx=4, rank=4, local_optimizer=SGD, update="tangent", factorization="orthonormal")
    shared, personal = method.init(model, rng())
    mechanism = make_mechanism(method.channels, Channel.LOCAL, noise=0.0, clip_norm=1e6, count=7.0)
    _, stepped, _ = method.client_step(model, shared, personal, batch, mechanism, rng(1))
    full = slow_gradients(model, shared.context + personal.context, batch).mean(dim=0)
    torch.testing.assert_close(stepped.context, personal.context - 0.1 * full, rtol=1e-3, atol=1e-5)


def test_without_residual_the_personal_prompt_stays_low_rank(model, batch, make_mechanism):
    method = DPFPL(
        num_ctx=4, rank=1, keep_residual=False, factorization="projection", update="factors", local_optimizer=SGD
    )
    shared, personal = method.init(model, rng())
    mechanism = make_mechanism(method.channels, Channel.LOCAL)
    _, stepped, _ = method.client_step(model, shared, personal, batch, mechanism, rng(1))
    values = torch.linalg.svdvals(stepped.context)
    assert values[1] < 1e-5 * values[0]


@pytest.mark.parametrize("rank", [1, 2, 4, 8])
@pytest.mark.parametrize(("update", "form"), FORMS)
def test_every_rank_moves_the_prompt_within_its_tangent_space(model, batch, make_mechanism, rank, update, form):
    method = DPFPL(num_ctx=8, rank=rank, factorization=form, update=update, local_optimizer=SGD)
    shared, personal = method.init(model, rng())
    mechanism = make_mechanism(method.channels, Channel.LOCAL, noise=0.0)
    _, stepped, _ = method.client_step(model, shared, personal, batch, mechanism, rng(1))
    values = torch.linalg.svdvals((stepped.context - personal.context).double())
    assert values[0] > 1e-4
    assert bool((values[2 * rank :] < 1e-5 * values[0]).all())  # a tangent vector at rank r has rank 2 r at most


@pytest.mark.parametrize("clip_norm", [0.05, 100.0])
def test_without_factorization_the_personal_prompt_steps_at_full_rank(model, batch, make_mechanism, clip_norm):
    method = DPFPL(num_ctx=4, rank=99, factorization="none", local_optimizer=SGD)
    shared, personal = method.init(model, rng())
    mechanism = make_mechanism(method.channels, Channel.LOCAL, noise=0.0, clip_norm=clip_norm, count=10.0)
    upload, stepped, _ = method.client_step(model, shared, personal, batch, mechanism, rng(1))
    total = torch.zeros_like(personal.context)
    for grad in slow_gradients(model, shared.context + personal.context, batch):
        total += grad * min(1.0, clip_norm / float(grad.norm()))
    torch.testing.assert_close(stepped.context, personal.context - 0.1 * total / 10, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(upload.shared_grad.value, total, rtol=1e-4, atol=1e-6)


def test_without_a_local_prompt_it_is_promptfl(model, batch, make_mechanism):
    ours = DPFPL(num_ctx=4, rank=2, global_optimizer=SGD)
    theirs = PromptFL(num_ctx=4, optimizer=SGD)
    shared, personal = ours.init(model, rng())
    nothing = fresh(torch.zeros_like(personal.context), ours.local_optimizer)
    other, none = theirs.init(model, rng())
    assert torch.equal(shared.context, other.context)
    for seed in range(3):
        local, server = (make_mechanism(ours.channels, allowed, seed=seed) for allowed in Channel)
        upload, _, _ = ours.client_step(model, shared, nothing, batch, local, rng(1))
        shared = ours.server_step(shared, server.release(Channel.GLOBAL, upload.shared_grad).value)
        local, server = (make_mechanism(theirs.channels, allowed, seed=seed) for allowed in Channel)
        upload, _, _ = theirs.client_step(model, other, none, batch, local, rng(1))
        other = theirs.server_step(other, server.release(Channel.GLOBAL, upload.shared_grad).value)
        torch.testing.assert_close(shared.context, other.context)


def test_the_factors_step_with_the_rate_of_their_schedule(model, batch, make_mechanism):
    settings = {"num_ctx": 4, "rank": 2, "factorization": "projection", "update": "factors"}
    slow, warming = Optimizer(learning_rate=0.05, momentum=0.0), Optimizer(momentum=0.0, warmup_steps=2)
    steps = []
    for optimizer in (slow, warming):
        method = DPFPL(local_optimizer=optimizer, **settings)
        shared, personal = method.init(model, rng())
        mechanism = make_mechanism(method.channels, Channel.LOCAL)
        steps.append(method.client_step(model, shared, personal, batch, mechanism, rng(1))[1].context)
    torch.testing.assert_close(*steps)


def test_noise_reaches_every_coordinate_of_the_tangent_space_with_the_planned_size(model, batch, make_mechanism):
    method = DPFPL(num_ctx=4, rank=4, local_optimizer=SGD)
    shared, personal = method.init(model, rng())
    steps = []
    for seed in range(300):
        mechanism = make_mechanism(method.channels, Channel.LOCAL, noise=50.0, count=7.0, seed=seed)
        steps.append(method.client_step(model, shared, personal, batch, mechanism, rng(1))[1].context)
    deviation = torch.stack(steps).std(dim=0)
    # g_u v + u g_v - u u^T g_u v at rank t is noise of the same size in every entry: 0.1 * 50 / 7.
    assert float(deviation.mean()) == pytest.approx(0.1 * 50 / 7, rel=0.15)


def test_impossible_settings_are_refused(model):
    with pytest.raises(ConfigError, match=r"rank must be at most min\(num_ctx, token width\)"):
        DPFPL(num_ctx=4, rank=5).init(model, rng())
    with pytest.raises(ConfigError, match=r"min\(num_classes \* num_ctx, token width\) = min\(20, 8\) = 8, got 9"):
        DPFPL(num_ctx=4, rank=9, is_class_specific=True).init(model, rng())
    with pytest.raises(ConfigError, match="needs both factors orthonormal"):
        DPFPL(factorization="svd", update="tangent")
    with pytest.raises(ConfigError, match="no factors to step and no residual to drop"):
        DPFPL(factorization="none", keep_residual=False)
    with pytest.raises(ConfigError, match="no factors to step and no residual to drop"):
        DPFPL(factorization="none", update="factors")
    with pytest.raises(ConfigError, match="rank must be > 0"):
        DPFPL(rank=0)
    with pytest.raises(ConfigError, match=r"class 'kiwi'|class 'lynx'"):
        DPFPL(num_ctx=39, rank=2).init(model, rng())
