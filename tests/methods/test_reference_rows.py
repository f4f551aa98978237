"""Rows of reference on image features: class means, least squares and the linear probe, against a step written out."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import hushprompt as hp
from helpers.runs import Silent
from helpers.toy_metric import task_of
from hushprompt.errors import ConfigError
from hushprompt.methods import linear_probe
from hushprompt.methods.base import Batch, NoState, OneRelease, check_needs
from hushprompt.methods.class_means import ClassMeans
from hushprompt.methods.least_squares import LeastSquares
from hushprompt.methods.linear_probe import LinearProbe
from hushprompt.models.features import FeaturesBackbone
from hushprompt.privacy.clipping import clipped_gram
from hushprompt.privacy.config import Audience, Channel, PrivacyConfig
from hushprompt.privacy.mechanisms import base
from hushprompt.privacy.plan import make_plan
from hushprompt.privacy.sampling import EveryExample
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.registry import METHODS

ROWS = ["class_means", "least_squares", "linear_probe"]
CLIP = 0.3


def rng(seed=0):
    return np.random.default_rng(seed)


def bound(method, noise=0.0, sizes=(7,), noise_at="server"):
    """The method as it runs on a task."""
    return method.of_task(task_of(sizes, noise=noise, clip_norm=CLIP, noise_at=noise_at))


def tool(method, step=0, noise=0.0, count=7.0, noise_at="server"):
    """The mechanism of one step, at the party that releases."""
    config = PrivacyConfig(
        epsilon=None,
        delta=1e-3,
        noise_multiplier_local=noise,
        noise_multiplier_global=noise,
        clip_norm_global=CLIP,
        noise_source="seeded",
        noise_at=noise_at,
    )
    plan = make_plan(
        config,
        EveryExample(steps_per_round=len(method.parts)),
        channels=method.channels,
        num_rounds=1,
        client_sizes=[7],
        mechanism=method.mechanism,
        parts=method.parts,
    )
    return plan.mechanism(allowed=Channel.GLOBAL, expected_count=count, rng=rng(1), step=step)


def released(method, model, batch, noise=0.0):
    """The state after all messages of one client that holds everything."""
    shared, own = method.init(model, rng())
    for step in range(len(method.parts)):
        mechanism = tool(method, step, noise)
        upload, own, info = method.client_step(model, shared, own, batch, mechanism, rng())
        assert math.isnan(info.loss)
        shared = method.server_step(shared, mechanism.release(Channel.GLOBAL, upload.shared_grad).value)
    return shared


def test_class_means_score_by_the_cosine_to_the_mean_of_each_class(model, batch):
    method = bound(ClassMeans())
    logits = method.logits(model, released(method, model, batch), *method.init(model, rng())[1:], batch.image_features)
    for label in range(model.num_classes):
        mean = batch.image_features[batch.labels == label].mean(dim=0)
        expected = model.logit_scale * F.cosine_similarity(batch.image_features, mean[None])
        torch.testing.assert_close(logits[:, label], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", ["zero", "zero_shot"])
def test_least_squares_is_ridge_regression(model, batch, start):
    method = bound(LeastSquares(start=start, ridge=0.7, gram_share=0.2))
    logits = method.logits(model, released(method, model, batch), None, batch.image_features).double()
    x, y = batch.image_features.double(), F.one_hot(batch.labels, model.num_classes).double()
    prior = (
        0.45 * model.template_features.double() if start == "zero_shot" else torch.zeros(model.num_classes, x.shape[1])
    )
    penalty = 0.7
    weights = torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1]), x.T @ y + penalty * prior.T.double())
    torch.testing.assert_close(logits, model.logit_scale * x @ weights, rtol=1e-4, atol=1e-4)


def test_the_penalty_of_least_squares_grows_with_the_noise_of_its_gram_matrix(model, batch):
    """Its spectral norm is about s sqrt(2 d) with s the noise of one entry; with noise at clients, s sqrt(k)."""
    tasks = [(0.0, (7,), "server"), (2.0, (7,), "server"), (2.0, (3, 4), "server"), (2.0, (3, 4), "client")]
    kinds = [bound(LeastSquares(), *task) for task in tasks]
    quiet, once, shared, each = [kind._penalty(128) - kind.ridge for kind in kinds]
    assert quiet == pytest.approx(0)
    assert once == shared == pytest.approx(2 / kinds[1].gram_share ** 0.5 * 16)
    assert each == pytest.approx(once * 2**0.5)
    noise = torch.from_numpy(rng().normal(size=(128, 128))) * 2 / kinds[1].gram_share ** 0.5
    assert torch.linalg.eigvalsh((noise + noise.T) / 2).max() == pytest.approx(once, rel=0.1)


@pytest.mark.parametrize("method", [ClassMeans(), LeastSquares(), LeastSquares(gram_share=0.9)])
def test_one_example_moves_all_messages_together_by_no_more_than_the_clip_norm(method, model):
    """The worst case over random batches, long and broken rows among them, reaches the bound for a unit-norm row."""
    moved = []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(6, model.backbone.feature_dim, generator=generator) * 10 ** (torch.arange(6) % 3 - 1)[:, None]
        x[5] = F.normalize(x[5], dim=0)
        y = torch.randint(model.num_classes, (6,), generator=generator)
        x = torch.cat([x, torch.full_like(x[:1], math.nan)])
        y = torch.cat([y, y[:1]])
        for left_out in range(7):
            kept = [i for i in range(7) if i != left_out]
            squares = 0.0
            for step in range(len(method.parts)):
                both = []
                for batch in (Batch(x, y), Batch(x[kept], y[kept])):
                    state = dataclasses.replace(method.init(model, rng())[0])
                    upload = method.client_step(model, state, NoState(), batch, tool(method, step), rng())[
                        0
                    ].shared_grad
                    assert upload.sensitivity == CLIP * math.sqrt(method.parts[step])
                    both.append(upload.value)
                squares += float((both[0] - both[1]).square().sum())
            assert squares**0.5 <= CLIP
            moved.append((left_out, squares**0.5))
    assert all(distance == 0 for left_out, distance in moved if left_out == 6), "a row that is no number"
    assert all(distance > 0.999 * CLIP for left_out, distance in moved if left_out == 5), "no smaller bound holds"


def test_the_gram_matrix_gets_its_noise_where_the_proof_says(model, batch):
    """Rows of the other message stay zero; every entry of the square has noise of its own, C z."""
    method = LeastSquares()
    width = model.backbone.feature_dim
    empty = Batch(batch.image_features[:0], batch.labels[:0])
    draws = []
    for step, rows in enumerate([slice(0, width), slice(width, None)]):
        state, own = method.init(model, rng())
        mechanism = tool(method, step, noise=5.0, count=1.0)
        upload = method.client_step(model, state, own, empty, mechanism, rng())[0].shared_grad
        assert int(upload.rows_released[rows].sum()) == int(upload.rows_released.sum()) == len(upload.value[rows])
        value = mechanism.release(Channel.GLOBAL, upload).value
        assert bool((value[rows] != 0).all())
        assert int((value != 0).sum()) == value[rows].numel()
        draws.append(value[rows].flatten())
    assert torch.cat(draws).std() == pytest.approx(5 * CLIP, rel=0.2)
    assert torch.equal(clipped_gram(batch.image_features, 1.0).value, clipped_gram(batch.image_features, 1.0).value.T)


@pytest.mark.parametrize("method", [ClassMeans(), LeastSquares()])
def test_rows_of_classes_that_were_declared_absent_get_no_noise_and_no_example(method, model, batch):
    state, own = method.init(model, rng())
    last = len(method.parts) - 1
    declared = Batch(batch.image_features, batch.labels % 2, classes=(0, 1))
    upload = method.client_step(model, state, own, declared, tool(method, last), rng())[0].shared_grad
    offset = len(upload.value) - model.num_classes
    assert upload.rows_released.nonzero().flatten().tolist() == [offset, offset + 1]
    fewer = dataclasses.replace(declared, classes=(0,))
    left = method.client_step(model, state, own, fewer, tool(method, last), rng())[0].shared_grad.value
    assert torch.equal(left[offset], upload.value[offset])
    assert not left[offset + 1].any()


@pytest.mark.parametrize("start", ["zero", "zero_shot"])
@pytest.mark.parametrize("clip_norm", [0.4, 100.0])
def test_a_step_of_the_probe_is_that_of_autograd_one_example_at_a_time(model, batch, make_mechanism, start, clip_norm):
    method = LinearProbe(start=start)
    shared, own = method.init(model, rng())
    upload, _, info = method.client_step(
        model, shared, own, batch, make_mechanism(method.channels, Channel.LOCAL, clip_norm=clip_norm), rng()
    )
    total, losses = torch.zeros_like(shared.weights), []
    for feature, label in zip(batch.image_features, batch.labels, strict=True):
        weights = shared.weights.clone().requires_grad_()
        inputs = torch.cat([feature, torch.tensor([linear_probe.BIAS_INPUT])])
        loss = F.cross_entropy((weights @ inputs)[None], label[None])
        (grad,) = torch.autograd.grad(loss, weights)
        total += grad * min(1.0, clip_norm / float(grad.norm()))
        losses.append(float(loss.detach()))
    torch.testing.assert_close(upload.shared_grad.value, total, rtol=1e-4, atol=1e-5)
    assert info.loss == pytest.approx(np.mean(losses), rel=1e-4)


def test_a_probe_from_zero_shot_starts_there(model, batch):
    method = LinearProbe(start="zero_shot")
    logits = method.logits(model, *method.init(model, rng()), batch.image_features)
    torch.testing.assert_close(logits, model.logits(batch.image_features, model.template_features))


def test_chunks_change_nothing_but_memory(model, batch, make_mechanism, monkeypatch):
    method = LinearProbe()
    shared, own = method.init(model, rng())
    sums = []
    for numbers in (2**24, 1):
        monkeypatch.setattr(base, "NUMBERS_AT_ONCE", numbers)
        mechanism = make_mechanism(method.channels, Channel.LOCAL, clip_norm=0.4)
        sums.append(method.client_step(model, shared, own, batch, mechanism, rng())[0].shared_grad)
    torch.testing.assert_close(sums[0].value, sums[1].value)
    assert sums[0].sensitivity == sums[1].sensitivity
    assert sums[0].centered_count == pytest.approx(sums[1].centered_count)


@pytest.mark.parametrize("numbers", [2**24, 1])
def test_a_client_that_is_clipped_as_one_is_one_row_however_many_chunks(model, batch, monkeypatch, numbers):
    monkeypatch.setattr(base, "NUMBERS_AT_ONCE", numbers)
    method = LinearProbe()
    config = PrivacyConfig(
        epsilon=None,
        delta=1e-3,
        noise_multiplier_local=1.0,
        noise_multiplier_global=1.0,
        clip_norm_global=0.01,
        privacy_unit="client",
        audience=Audience.PUBLIC,
        noise_source="seeded",
    )
    plan = make_plan(config, EveryExample(), channels=method.channels, num_rounds=1, client_sizes=[7, 7])
    shared, own = method.init(model, rng())
    for data, norm in ((batch, 0.01), (Batch(batch.image_features[:0], batch.labels[:0]), 0.0)):
        mechanism = plan.mechanism(allowed=Channel.LOCAL, expected_count=7.0, rng=rng())
        summed = method.client_step(model, shared, own, data, mechanism, rng())[0].shared_grad
        assert summed.value.norm() == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        (ClassMeans(), "none"),
        (LeastSquares(), "none"),
        (LeastSquares(start="zero_shot"), "features"),
        (LinearProbe(start="zero"), "none"),
        (LinearProbe(start="zero_shot"), "features"),
    ],
)
def test_text_is_needed_only_where_it_is_used(method, kind):
    assert method.needs_text == kind
    backbone = FeaturesBackbone(feature_dim=6).load()
    if kind == "none":
        check_needs(method, backbone)
        method.init(PromptModel(backbone, ("ant", "bee")), rng())
    else:
        with pytest.raises(ConfigError, match="needs text features"):
            check_needs(method, backbone)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("noise_at", ["server", "client"])
def test_a_run_is_accounted_for_and_verified(toy_values, tmp_path, name, noise_at):
    values = {**toy_values, "method": {"name": name}, "references": []}
    run = hp.run(
        {
            **values,
            "privacy": {**values["privacy"], "noise_at": noise_at, "rounding": 0.0},
            "runtime": {"cache_dir": str(tmp_path / "c")},
        },
        out=tmp_path / "run",
        progress=Silent(),
    )
    statement = run.guarantees["public"].statement()
    assert isinstance(METHODS.get(name)(), OneRelease) == ("every example, once, no sampling" in statement)
    assert 7.9 < run.guarantees["public"].epsilon <= 8
    checked = hp.verify(run)
    assert not checked.differences, str(checked)
