"""What every registered method must keep, first of all that data enters only through the plan's releases."""

import dataclasses
import functools
import importlib.util

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from helpers.toy_metric import statistics_of, task_of
from hushprompt.deployment import wire
from hushprompt.federation.payload import PayloadKind, add_shares, shared_like
from hushprompt.methods.base import Batch, ClipsBatches, Method, OneRelease, Upload
from hushprompt.methods.class_statistics import ClassStatistics
from hushprompt.methods.context import ContextConfig
from hushprompt.privacy.clipping import ClippedSum
from hushprompt.privacy.config import Channel
from hushprompt.privacy.mechanisms.base import Release
from hushprompt.privacy.mechanisms.observed import WrappedMechanism
from hushprompt.prompts.optimizer import Optimizer
from hushprompt.prompts.prompted import prompted
from hushprompt.registry import METHODS
from hushprompt.runs.state import flatten, restore


def small(name, clip_norm=1.0, sizes=(7,)):
    """The method with settings that fit the toy model; "(middle)" has the name there and a context for each class."""
    cls = METHODS.get(name.partition(" (")[0])
    wanted = {"num_ctx": 4, "rank": 2}
    wanted |= dict.fromkeys(("optimizer", "global_optimizer", "local_optimizer"), Optimizer())
    if name.endswith(" (middle)"):
        wanted |= {"name_position": "middle", "is_class_specific": True}
    if cls is ClassStatistics:
        return statistics_of(sizes, clip_norm=clip_norm)
    method = cls(**{field.name: wanted[field.name] for field in dataclasses.fields(cls) if field.name in wanted})
    return method.of_task(task_of(sizes, clip_norm=clip_norm)) if isinstance(method, OneRelease) else method


NAMES = METHODS.names() + [f"{n} (middle)" for n in METHODS.names() if issubclass(METHODS.get(n), ContextConfig)]
if importlib.util.find_spec("transformers"):
    NAMES += [f"{n} (generative)" for n in METHODS.names() if not getattr(METHODS.get(n), "needs_two_towers", True)]
every_method = pytest.mark.parametrize("name", NAMES)
trained_methods = pytest.mark.parametrize("name", [name for name in NAMES if small(name).channels])


def clipping(method):
    """What the plan must know of how a method clips."""
    if isinstance(method, OneRelease):
        return {"mechanism": method.mechanism, "parts": method.parts}
    return {"batch_clipping": method.batch_clipping} if isinstance(method, ClipsBatches) else {}


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def generative(tmp_path_factory):
    """A tiny SmolVLM with the classes of the toy model."""
    from helpers import tiny_generative
    from hushprompt.models.generative import SmolVLM

    folder = tiny_generative.write("smolvlm", tmp_path_factory.mktemp("hub"))
    backbone = SmolVLM(model=str(folder), loss="classes").load()
    return prompted(backbone, ("ant", "bee", "kiwi", "ox", "lynx"))


@pytest.fixture
def model(name, model, request):
    """The toy model, or the generative one."""
    return request.getfixturevalue("generative") if name.endswith("(generative)") else model


@pytest.fixture
def make_mechanism(make_mechanism, name):
    """The suite's mechanisms, for the way in which a method clips."""
    method = small(name)
    return functools.partial(make_mechanism, **clipping(method))


@pytest.fixture
def batch(name, model):
    """Seven examples of the kind that the method needs."""
    patches = (4,) if small(name).feature_kind == "patches" or name.endswith("(generative)") else ()
    features = torch.from_numpy(rng(5).normal(size=(7, *patches, model.backbone.feature_dim))).float()
    return Batch(torch.nn.functional.normalize(features, dim=-1), torch.tensor([0, 1, 2, 3, 4, 0, 2]))


def step(method, model, batch, mechanism, states=None):
    shared, personal = states or method.init(model, rng())
    return shared, method.client_step(model, shared, personal, batch, mechanism, rng(1))


def assert_same(left, right):
    left, right = flatten(left), flatten(right)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


@every_method
def test_it_is_a_method(name):
    assert isinstance(small(name), Method)


@every_method
def test_the_same_stream_starts_it_alike(name, model):
    for left, right in zip(small(name).init(model, rng(3)), small(name).init(model, rng(3)), strict=True):
        assert_same(left, right)


@every_method
def test_a_round_begins_without_any_data_and_the_same_way_each_time(name, model):
    method = small(name)
    shared, _ = method.init(model, rng())
    before = {key: tensor.clone() for key, tensor in flatten(shared).items()}
    first, second = method.begin_round(shared), method.begin_round(shared)
    assert_same(first, second)
    assert {key: tensor.shape for key, tensor in flatten(first).items()} == {k: v.shape for k, v in before.items()}
    for key, tensor in flatten(shared).items():
        assert torch.equal(tensor, before[key])


@trained_methods
def test_a_step_is_pure_and_repeatable(name, model, batch, make_mechanism):
    method = small(name)
    shared, personal = method.init(model, rng())
    before = {k: v.clone() for k, v in {**flatten(shared, "s."), **flatten(personal, "p.")}.items()}
    outcomes = []
    for _ in range(2):
        mechanism = make_mechanism(method.channels, Channel.LOCAL)
        outcomes.append(method.client_step(model, shared, personal, batch, mechanism, rng(1)))
    assert_same(outcomes[0][1], outcomes[1][1])
    for key, tensor in {**flatten(shared, "s."), **flatten(personal, "p.")}.items():
        assert torch.equal(tensor, before[key])


class Deaf(WrappedMechanism):
    """A mechanism that clips nothing into its sums: what comes out cannot depend on data."""

    def clip(self, channel, grads):
        return ClippedSum(torch.zeros(grads.shape[1:]), self.inner.clip(channel, grads).sensitivity)

    def clip_batch(self, channel, *means):
        honest = self.inner.clip_batch(channel, *means)
        return ClippedSum(torch.zeros_like(honest.value), honest.sensitivity)

    def clip_in_classes(self, channel, rows):
        honest = self.inner.clip_in_classes(channel, rows)
        return dataclasses.replace(honest, value=torch.zeros_like(honest.value))


@trained_methods
def test_data_enters_the_personal_state_and_the_upload_only_through_clipped_sums(name, model, batch, make_mechanism):
    method = small(name)
    states = method.init(model, rng())
    other = Batch(-batch.image_features.flip(0), (batch.labels + 1) % model.num_classes)
    empty = Batch(batch.image_features[:0], batch.labels[:0])
    outcomes = []
    for data in (batch, other, empty):
        honest = make_mechanism(method.channels, Channel.LOCAL)
        deaf = Deaf(dataclasses.replace(honest, rng=rng(9)))
        outcomes.append(step(method, model, data, deaf, states)[1])
    for outcome in outcomes[1:]:
        assert_same(outcomes[0][1], outcome[1])
        first, second = outcomes[0][0].shared_grad, outcome[0].shared_grad
        assert (first is None) == (second is None)
        if first is not None:
            assert torch.equal(first.value, second.value)


class Mute(WrappedMechanism):
    """A mechanism that releases noise alone, whatever the sum: no state that comes out can depend on data."""

    def release(self, channel, summed):
        return Release(torch.from_numpy(self.inner.rng.standard_normal(tuple(summed.value.shape))).float())


@trained_methods
def test_data_enters_the_personal_state_only_through_what_is_released(name, model, batch, make_mechanism):
    method = small(name)
    states = method.init(model, rng())
    other = Batch(-batch.image_features.flip(0), (batch.labels + 1) % model.num_classes)
    stepped = []
    for data in (batch, other):
        honest = make_mechanism(method.channels, Channel.LOCAL)
        mute = Mute(dataclasses.replace(honest, rng=rng(9)))
        stepped.append(step(method, model, data, mute, states)[1][1])
    assert_same(*stepped)


@trained_methods
def test_a_step_makes_the_releases_it_declares_and_no_other(name, model, batch, make_mechanism):
    method, seen = small(name), []

    class Counted(WrappedMechanism):
        def release(self, channel, summed):
            seen.append(channel)
            return self.inner.release(channel, summed)

    mechanism = Counted(make_mechanism(method.channels, Channel.LOCAL))
    _, (upload, _, _) = step(method, model, batch, mechanism)
    assert seen == [Channel.LOCAL] * (Channel.LOCAL in method.channels)
    assert (upload.shared_grad is not None) == (Channel.GLOBAL in method.channels)


@trained_methods
def test_one_example_more_moves_upload_and_release_by_no_more_than_the_sensitivity(name, model, batch, make_mechanism):
    method, clip_norm, count = small(name), 0.01, 7.0
    states = method.init(model, rng())
    fewer = Batch(batch.image_features[1:], batch.labels[1:])
    sums, released = [], []
    for data in (batch, fewer):
        mechanism = make_mechanism(method.channels, Channel.LOCAL, noise=0.0, clip_norm=clip_norm, count=count)
        seen = []

        class Spy(WrappedMechanism):
            def release(self, channel, summed, seen=seen):
                released = self.inner.release(channel, summed)
                seen.append(released.value)
                return released

        spy = Spy(dataclasses.replace(mechanism, rng=rng()))
        upload = step(method, model, data, spy, states)[1][0]
        sums.append(upload.shared_grad)
        released.append(seen)
    if sums[0] is not None:
        moved = (sums[0].value - sums[1].value).norm()
        assert 0 < moved <= mechanism.plan.sensitivity(Channel.GLOBAL) * (1 + 1e-4)
    for with_one, without in zip(*released, strict=True):
        assert (
            0
            < (with_one - without).norm()
            <= mechanism.plan.sensitivity(Channel.LOCAL) / mechanism.expected_count * (1 + 1e-4)
        )


def can_share(name):
    return Channel.GLOBAL in small(name).channels and not isinstance(small(name), ClipsBatches)


@pytest.mark.parametrize("name", list(filter(can_share, NAMES)))
def test_noise_shares_open_to_what_the_server_steps_with_and_move_by_no_more_than_a_sum(
    name, model, batch, make_mechanism
):
    method, settings = small(name), {"noise": 0.0, "clip_norm": 0.01, "noise_at": "shares"}
    states, vectors = method.init(model, rng()), []
    for data in (batch, Batch(batch.image_features[1:], batch.labels[1:])):
        local = make_mechanism(method.channels, Channel.LOCAL, **settings)
        upload = step(method, model, data, dataclasses.replace(local, rng=rng()), states)[1][0]
        own = make_mechanism(method.channels, Channel.GLOBAL, **settings)
        vectors.append((own.share(Channel.GLOBAL, upload.shared_grad, 3), upload.shared_grad.value))
    plan, (vector, value) = own.plan, vectors[0]
    width = plan.share_grid(0.01, 0, vector.size, 3).step
    moved = np.linalg.norm((vector - vectors[1][0]) * width)
    assert 0 < moved <= plan.sensitivity(Channel.GLOBAL) * (1 + 1e-4) + 1.1 * vector.size**0.5 * width
    server = make_mechanism(method.channels, Channel.GLOBAL, **settings)
    total = add_shares([vector, np.zeros_like(vector), np.zeros_like(vector)])
    opened = server.open_shares(Channel.GLOBAL, total, 3).value.reshape(shared_like(method, states[0]).shape)
    torch.testing.assert_close(opened, (value / server.expected_count).float(), atol=1e-9, rtol=1e-5)
    assert flatten(method.server_step(states[0], opened)).keys() == flatten(states[0]).keys()


@trained_methods
def test_a_step_hands_on_the_next_clip_norms_of_its_release(name, model, batch, make_mechanism):
    method = small(name)

    class Adaptive(WrappedMechanism):
        def release(self, channel, summed):
            return dataclasses.replace(self.inner.release(channel, summed), next_norms={channel: 0.25})

    info = step(method, model, batch, Adaptive(make_mechanism(method.channels, Channel.LOCAL)))[1][2]
    assert info.next_norms == ({Channel.LOCAL: 0.25} if Channel.LOCAL in method.channels else {})


@trained_methods
def test_an_empty_batch_is_a_step_like_any_other(name, model, batch, make_mechanism):
    method = small(name)
    empty = Batch(batch.image_features[:0], batch.labels[:0])
    _, (upload, personal, info) = step(method, model, empty, make_mechanism(method.channels, Channel.LOCAL))
    assert isinstance(upload, Upload)
    assert np.isnan(info.loss)
    assert all(bool(tensor.isfinite().all()) for tensor in flatten(personal).values())


@every_method
def test_logits_have_a_column_a_class(name, model, batch):
    method = small(name)
    shared, personal = method.init(model, rng())
    assert method.logits(model, shared, personal, batch.image_features).shape == (7, model.num_classes)


@trained_methods
def test_without_noise_it_learns(name, model, batch, make_mechanism):
    method = small(name, clip_norm=100.0)
    steps, losses = [0] * 40, []
    if isinstance(method, OneRelease):  # which trusts a mean as far as there are images of it
        method, steps = small(name, clip_norm=100.0, sizes=(70,)), range(len(method.parts))
        batch = Batch(batch.image_features.repeat(10, 1), batch.labels.repeat(10))
        make_mechanism = functools.partial(make_mechanism, count=70.0)
    shared, personal = method.init(model, rng())
    for step in steps:
        local = make_mechanism(method.channels, Channel.LOCAL, noise=0.0, clip_norm=100.0, step=step)
        server = make_mechanism(method.channels, Channel.GLOBAL, noise=0.0, clip_norm=100.0, step=step)
        losses.append(cross_entropy(method.logits(model, shared, personal, batch.image_features), batch.labels))
        upload, personal, _ = method.client_step(model, shared, personal, batch, local, rng())
        if upload.shared_grad is not None:
            shared = method.server_step(shared, server.release(Channel.GLOBAL, upload.shared_grad).value)
    losses.append(cross_entropy(method.logits(model, shared, personal, batch.image_features), batch.labels))
    assert losses[-1] < (0.9 if name.endswith("(generative)") else 0.8) * losses[0]  # whose weights are random


@trained_methods
def test_a_client_reads_nothing_of_what_does_not_come_down_to_it(name, model, batch, make_mechanism):
    method = small(name)
    shared, personal = method.init(model, rng())
    came = wire.request_tensors(method, shared, PayloadKind.SUMS)
    numbers = [tensor for tensor in came.values() if tensor.is_floating_point()]
    assert len(numbers) == (Channel.GLOBAL in method.channels), "and an upload is like the one thing that does"
    hidden = {
        key: torch.full_like(tensor, float("nan") if tensor.is_floating_point() else -1)
        for key, tensor in flatten(shared).items()
    }
    blind = restore(shared, {**hidden, **came})
    seen = [
        step(method, model, batch, make_mechanism(method.channels, Channel.LOCAL), (state, personal))[1]
        for state in (shared, blind)
    ]
    assert_same(seen[0][1], seen[1][1])
    if came:
        uploads = [upload.shared_grad.value for upload, _, _ in seen]
        assert torch.equal(*uploads)
        (like,) = numbers
        assert uploads[0].shape == (like.flatten() if isinstance(method, ClipsBatches) else like).shape
