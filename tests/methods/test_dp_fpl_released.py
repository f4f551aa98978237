import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hushprompt.config import parse as configs
from hushprompt.errors import ConfigError
from hushprompt.federation.planning import plan_arms
from hushprompt.methods.base import Batch
from hushprompt.methods.dp_fpl_released import DPFPLReleased
from hushprompt.privacy.config import Audience, Channel
from hushprompt.prompts.optimizer import Optimizer
from hushprompt.seeding import stream

SGD = Optimizer(learning_rate=0.1, momentum=0.0)


def rng(seed=0):
    return np.random.default_rng(seed)


def gram_schmidt(matrix):
    columns = []
    for column in matrix.T:
        for other in columns:
            column = column - (other @ column) * other
        columns.append(column / column.norm())
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("clip_norm", [0.05, 100.0])
@pytest.mark.parametrize("layout", [{}, {"is_class_specific": True, "name_position": "middle"}])
def test_a_step_without_noise_is_the_released_codes_step_by_plain_autograd(
    model, batch, make_mechanism, clip_norm, layout
):
    method = DPFPLReleased(num_ctx=4, rank=2, global_optimizer=SGD, local_optimizer=SGD, **layout)
    shared, personal = method.init(model, rng())
    make = make_mechanism(
        method.channels,
        Channel.LOCAL,
        noise=0.0,
        clip_norm=clip_norm,
        count=10.0,
        batch_clipping=method.batch_clipping,
    )
    upload, stepped, _ = method.client_step(model, shared, personal, batch, make, rng(1))

    whole = personal.context.reshape(-1, 8)
    start = torch.from_numpy(rng(1).standard_normal((8, 2))).float()
    u = gram_schmidt(whole @ start)
    v = gram_schmidt(whole.T @ u).T
    residual = whole - u @ v
    leaves = [leaf.clone().requires_grad_() for leaf in (shared.context, u, v)]
    context = leaves[0] + (leaves[1] @ leaves[2] + residual).view_as(leaves[0])
    features = model.backbone.encode_prompts(*model.plain_prompts(context, method.name_position))
    loss = F.cross_entropy(model.logits(batch.image_features, features), batch.labels)  # of the whole batch
    of_global, of_u, of_v = (
        grad * min(1.0, clip_norm / float(grad.norm())) for grad in torch.autograd.grad(loss, leaves)
    )
    tenth_u, tenth_v = of_u / 10, of_v / 10
    rebuilt = tenth_u @ v + u @ tenth_v + u @ u.T @ tenth_u @ v
    expected = personal.context - 0.1 * rebuilt.view_as(personal.context)
    torch.testing.assert_close(stepped.context, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(upload.shared_grad.value.view_as(of_global), of_global, rtol=1e-4, atol=1e-6)
    moved = method.server_step(shared, upload.shared_grad.value)
    torch.testing.assert_close(moved.context, shared.context - 0.1 * of_global, rtol=1e-4, atol=1e-6)


def test_clients_count_once_each_whatever_their_size(model, batch, make_mechanism):
    method = DPFPLReleased(num_ctx=4, rank=2)
    shared, personal = method.init(model, rng())
    uploads = []
    for size in (2, 7):
        part = Batch(batch.image_features[:size], batch.labels[:size])
        mechanism = make_mechanism(
            method.channels, Channel.LOCAL, noise=0.0, clip_norm=0.01, batch_clipping=method.batch_clipping
        )
        uploads.append(method.client_step(model, shared, personal, part, mechanism, rng())[0].shared_grad.value)
    assert float(uploads[0].norm()) == pytest.approx(float(uploads[1].norm()), rel=1e-4)


def arm_of(toy_values, **changes):
    values = {
        **toy_values,
        "method": {"name": "dp_fpl_released", "num_ctx": 4, "rank": 2},
        "sampling": {"name": "disjoint", "steps_per_round": 1},
        "references": [{"method": {"name": "dp_fpl", "num_ctx": 4, "rank": 2}}],
    }
    return plan_arms(configs.parse({**values, **changes}), [40, 20])


def test_a_table_shows_what_is_proven_and_never_the_nominal_epsilon(toy_values):
    privacy = {"epsilon": 0.4, "delta": 1e-3, "clip_norm_local": 10.0, "clip_norm_global": 10.0}
    honest, released = arm_of(toy_values, privacy=privacy)
    assert (honest.label, released.label) == ("dp_fpl, epsilon 0.4", "dp_fpl_released, nominal epsilon 0.4")
    assert honest.plan.epsilon(Audience.PERSONAL) <= 0.4
    # T = 3 rounds, B = 40: z = sqrt(3 ln 1000) / 0.4, and one example moves three blocks by 2 C each.
    z = math.sqrt(3 * math.log(1e3)) / 0.4 / (2 * 40 * math.sqrt(3))
    assert released.plan.releases(Audience.PERSONAL).noise_multiplier == pytest.approx(z)
    assert released.plan.epsilon(Audience.PERSONAL) > 100


def test_an_honest_calibration_of_the_same_recipe(toy_values):
    method = {"name": "dp_fpl_released", "num_ctx": 4, "rank": 2, "calibration": "accountant"}
    arm = arm_of(toy_values, method=method)[1]
    assert arm.label == "dp_fpl_released, epsilon 8"
    assert 7.9 < arm.plan.epsilon(Audience.PERSONAL) <= 8.0


def test_nothing_else_can_ask_for_the_formula_of_the_paper(toy_values):
    for section in ({"privacy": {"calibration": "paper"}}, {"method": {"name": "dp_fpl", "calibration": "paper"}}):
        with pytest.raises(ConfigError, match="Unknown key 'calibration'"):
            configs.parse({**toy_values, **section})


def test_the_noise_of_a_run_has_the_size_of_the_formula(model, batch, toy_values):
    privacy = {"epsilon": 0.4, "delta": 1e-3, "clip_norm_local": 10.0, "clip_norm_global": 10.0}
    plan = arm_of(toy_values, privacy=privacy)[1].plan
    std = math.sqrt(3 * math.log(1e3)) / 0.4 * 10 / 40
    for channel, divisor, blocks in ((Channel.LOCAL, 1, 2), (Channel.GLOBAL, 2, 1)):
        mechanism = plan.mechanism(allowed=channel, expected_count=33.0, rng=stream(1, "noise"), num_clients=divisor)
        zeros = [torch.zeros(20_000 // blocks)] * blocks
        released = mechanism.release(channel, mechanism.clip_batch(channel, *zeros)).value
        assert float(released.std()) == pytest.approx(std / divisor, rel=0.02)


def test_the_defaults_are_the_released_ones():
    method = DPFPLReleased()
    assert method.global_optimizer == method.local_optimizer
    assert (method.num_ctx, method.init_std, method.rank, method.calibration) == (16, 0.02, 8, "paper")
    optimizer = method.local_optimizer
    assert (optimizer.learning_rate, optimizer.momentum, optimizer.weight_decay) == (1e-3, 0.9, 5e-4)
