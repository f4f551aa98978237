"""Every registered mechanism does what its event says, refuses what the plan does not cover, and changes nothing."""

import copy
import dataclasses
import re

import dp_accounting
import numpy as np
import pytest
import torch

from hushprompt.errors import PrivacyError
from hushprompt.privacy import accounting
from hushprompt.privacy.clipping import ClippedSum
from hushprompt.privacy.config import Audience, Channel, PrivacyConfig
from hushprompt.privacy.mechanisms.base import ClassRows, Mechanism, Release
from hushprompt.privacy.mechanisms.gaussian import GaussianMechanism
from hushprompt.privacy.mechanisms.observed import ObservedMechanism
from hushprompt.privacy.plan import make_plan
from hushprompt.privacy.release_plan import BatchClipping
from hushprompt.privacy.sampling import DisjointSampler, EveryExample, PoissonSampler
from hushprompt.registry import MECHANISMS

SIZE = 20_000
every_mechanism = pytest.mark.parametrize("name", MECHANISMS.own_names())


def plan_of(name="gaussian", channels=frozenset(Channel), num_clients=1, **privacy):
    clips = {"batch_clipping": BatchClipping(num_local_blocks=1, calibration="accountant")}
    given = {"epsilon": None, "noise_multiplier_local": 2.0, "noise_multiplier_global": 5.0, "clip_norm_local": 0.5}
    return make_plan(
        PrivacyConfig(**{"noise_source": "seeded", "delta": 1e-4, **given, **privacy}),
        DisjointSampler(steps_per_round=2),
        channels=channels,
        num_rounds=3,
        client_sizes=[100] * num_clients,
        mechanism=name,
        **(clips if name == "batch_clipping" else {}),
    )


def tool(plan, channel=Channel.LOCAL, seed=0, **given):
    return plan.mechanism(allowed=channel, expected_count=10.0, rng=np.random.default_rng(seed), **given)


def in_classes(values, labels, is_public):
    return ClassRows(torch.as_tensor(values), torch.tensor(labels, dtype=torch.int64), torch.tensor(is_public))


def clipped(mechanism, channel, name, rows=None):
    rows = torch.zeros(4, SIZE) if rows is None else rows
    if name == "batch_clipping":
        return mechanism.clip_batch(channel, rows.mean(dim=0))
    if name == "second_moments":  # which makes a square of a row's width
        rows = rows[:, : round(SIZE**0.5)]
    if name in ("class_sums", "second_moments"):
        return mechanism.clip_in_classes(channel, in_classes(rows, len(rows) * [0], [True]))
    return mechanism.clip(channel, rows)


@every_mechanism
@pytest.mark.parametrize("channel", list(Channel))
def test_noise_over_sensitivity_is_what_the_event_says(name, channel):
    mechanism = tool(plan_of(name), channel)
    summed = clipped(mechanism, channel, name)
    noise = mechanism.release(channel, summed).value * mechanism.expected_count - summed.value
    multiplier = accounting.noise_multiplier(mechanism.event())
    assert multiplier == {Channel.LOCAL: 2.0, Channel.GLOBAL: 5.0}[channel]
    assert float(noise.std()) / summed.sensitivity == pytest.approx(multiplier, rel=0.03)
    assert abs(float(noise.mean())) < 5 * float(noise.std()) / SIZE**0.5


@every_mechanism
def test_the_doors_are_shut(name):
    mechanism = tool(plan_of(name))
    assert isinstance(mechanism, Mechanism)
    with pytest.raises(PrivacyError, match="releases on the local channel only"):
        mechanism.release(Channel.GLOBAL, clipped(mechanism, Channel.GLOBAL, name))
    with pytest.raises(PrivacyError, match=r"sensitivity 33\.0"):
        mechanism.release(Channel.LOCAL, ClippedSum(torch.zeros(3), 33.0))
    undeclared = tool(plan_of(name, channels=frozenset({Channel.GLOBAL})))
    with pytest.raises(PrivacyError, match="would not be accounted for"):
        clipped(undeclared, Channel.LOCAL, name)
    own = {"batch_clipping": 1, "class_sums": 2, "second_moments": 2}.get(name, 0)
    sums = (
        lambda: mechanism.clip(Channel.LOCAL, torch.zeros(1, 3)),
        lambda: mechanism.clip_batch(Channel.LOCAL, torch.zeros(3)),
        lambda: mechanism.clip_in_classes(Channel.LOCAL, in_classes(torch.zeros(1, 3), [0], [True])),
    )
    for kind, make in enumerate(sums):
        if kind != own:
            with pytest.raises(PrivacyError, match=f"planned for {mechanism.makes}, and the method makes another sum"):
                make()


@every_mechanism
def test_a_release_changes_neither_the_mechanism_nor_the_plan(name):
    adapts = name == "gaussian"
    plan = plan_of(name, **({"adaptive_quantile": 0.5} if adapts else {}))
    mechanism = tool(plan)
    before = copy.deepcopy({key: value for key, value in vars(mechanism).items() if key not in ("rng", "_released")})
    released = mechanism.release(Channel.LOCAL, clipped(mechanism, Channel.LOCAL, name))
    assert {key: vars(mechanism)[key] for key in before} == before
    assert set(released.next_norms) == ({Channel.LOCAL} if adapts else set())
    with pytest.raises(dataclasses.FrozenInstanceError):
        released.value = None


@every_mechanism
@pytest.mark.parametrize("channel", list(Channel))
def test_a_step_has_one_release(name, channel):
    mechanism = tool(plan_of(name), channel)
    with pytest.raises(PrivacyError, match="planned for"):  # what is refused was no release
        mechanism.release(channel, ClippedSum(torch.zeros(3), 33.0))
    summed = clipped(mechanism, channel, name)
    mechanism.release(channel, summed)
    with pytest.raises(PrivacyError, match=f"A second {channel} release came in one step, which is charged for one"):
        mechanism.release(channel, summed)
    tool(plan_of(name), channel).release(channel, summed)  # the next step's


def test_noise_is_that_of_the_clip_norm_of_its_own_step():
    """Both of the sum and of what a client sends with noise of its own, whatever the norm of the first step was."""
    plan = plan_of(adaptive_quantile=0.5)
    for channel in Channel:
        for source in ("seeded", "secure"):
            config = dataclasses.replace(plan.config, noise_source=source)
            release_plan = dataclasses.replace(plan.release_plan, config=config)
            norms = {str(each): 7.0 for each in Channel}
            mechanism = tool(dataclasses.replace(plan, release_plan=release_plan), channel, clip_norms=norms)
            summed = mechanism.clip(channel, torch.zeros(4, SIZE // 4))
            noise = mechanism.release(channel, summed).value * mechanism.expected_count
            assert float(noise.std()) == pytest.approx(7.0 * plan.release_plan.sum_multiplier(channel), rel=0.06)


def test_the_next_clip_norm_is_for_the_next_step():
    """The same draws with and without adaptive norms: what is released knows nothing of the norm that follows."""
    rows, noise = torch.full((4, 50), 1.0), []
    for plan in (plan_of(), adaptive := plan_of(adaptive_quantile=0.9, adaptive_rate=2.0)):
        mechanism = tool(plan, seed=3)
        summed = mechanism.clip(Channel.LOCAL, rows)
        released = mechanism.release(Channel.LOCAL, summed)
        noise.append((released.value * 10 - summed.value) / (0.5 * plan.release_plan.sum_multiplier(Channel.LOCAL)))
    assert abs(released.next_norms[Channel.LOCAL] / 0.5 - 1) > 0.01
    torch.testing.assert_close(*noise, rtol=1e-4, atol=1e-5)
    following = tool(adaptive, clip_norms={str(c): released.next_norms.get(c, 1.0) for c in Channel})
    assert following.clip(Channel.LOCAL, rows).sensitivity == released.next_norms[Channel.LOCAL]


def test_an_observer_hears_of_every_release_and_changes_none():
    heard = []

    class Ear:
        def on_release(self, mechanism, channel, summed, released):
            heard.append((mechanism, channel, summed, released))

        def on_share(self, mechanism, summed, shared, num_participants):
            heard.append((mechanism, summed, shared, num_participants))

    plan = plan_of()
    observed, plain = tool(dataclasses.replace(plan, observer=Ear())), tool(plan)
    assert isinstance(observed, ObservedMechanism)
    summed = observed.clip(Channel.LOCAL, torch.ones(2, 3))
    released = observed.release(Channel.LOCAL, summed)
    assert torch.equal(released.value, plain.release(Channel.LOCAL, summed).value)
    assert [each[1:] for each in heard] == [(Channel.LOCAL, summed, released.value)]
    assert type(heard[0][0]) is GaussianMechanism
    assert (observed.event(), observed.plan, observed.allowed) == (plain.event(), plan.release_plan, Channel.LOCAL)
    assert dataclasses.replace(plan, observer=Ear()) == plan, "an observer is no part of what is planned"
    heard.clear()
    plan = dataclasses.replace(plan_of(noise_at="shares", num_clients=3), observer=Ear())
    summed = tool(plan, Channel.GLOBAL).clip(Channel.GLOBAL, torch.ones(2, 3))
    shared = tool(plan, Channel.GLOBAL).share(Channel.GLOBAL, summed, 3)
    released = tool(plan, Channel.GLOBAL).open_shares(Channel.GLOBAL, shared, 3)
    assert [each[1:] for each in heard] == [(summed, shared, 3), (Channel.GLOBAL, None, released.value)]


def registered(monkeypatch):
    """Register a mechanism, as another package does; it may say another event."""
    monkeypatch.setattr(MECHANISMS, "_classes", dict(MECHANISMS._classes))

    @MECHANISMS.register("mine")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Mine(GaussianMechanism):
        """Twice the noise."""

        factor = 2.0

        def event(self):
            return dp_accounting.GaussianDpEvent(self.factor * self.plan.noise_multipliers[self.allowed])

        def release(self, channel, summed):
            noise = super().release(channel, summed).value - summed.value / self.expected_count
            return Release(summed.value / self.expected_count + 2 * noise)

    return Mine


def test_another_mechanism_is_one_class_and_its_event_is_what_is_accounted(monkeypatch):
    mine = registered(monkeypatch)
    plan, plain = plan_of("mine"), plan_of()
    assert type(tool(plan)) is mine
    assert plan.releases(Audience.PUBLIC).noise_multiplier == 2 * plain.releases(Audience.PUBLIC).noise_multiplier
    assert plan.epsilon(Audience.PUBLIC) < plain.epsilon(Audience.PUBLIC)


def test_a_mechanism_that_adds_less_noise_than_the_budget_asks_for_is_refused(monkeypatch):
    mine = registered(monkeypatch)
    mine.factor = 0.5
    with pytest.raises(PrivacyError, match=re.escape("mechanism 'mine' has a noise multiplier of")):
        plan_of("mine", epsilon=4.0, noise_multiplier_local=None, noise_multiplier_global=None)


def test_a_mechanism_whose_event_is_not_gaussian_is_refused(monkeypatch):
    mine = registered(monkeypatch)
    monkeypatch.setattr(mine, "event", lambda self: dp_accounting.LaplaceDpEvent(1.0))
    with pytest.raises(PrivacyError, match="Only Gaussian releases are accounted for"):
        plan_of("mine")


def test_an_unknown_mechanism_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="Did you mean 'gaussian'"):
        make_plan(
            PrivacyConfig(), PoissonSampler(), channels=frozenset(Channel), num_rounds=1, client_sizes=[5],
            mechanism="gausian",
        )  # fmt: skip


NOISE = {"epsilon": None, "noise_multiplier_local": 5.0, "noise_multiplier_global": 5.0}


def in_parts(parts, source="seeded"):
    return make_plan(
        PrivacyConfig(noise_source=source, clip_norm_global=0.3, delta=1e-4, **NOISE),
        EveryExample(steps_per_round=len(parts)), channels=frozenset({Channel.GLOBAL}), num_rounds=1,
        client_sizes=[100], mechanism="class_sums", parts=parts,
    )  # fmt: skip


@pytest.mark.parametrize("source", ["seeded", "secure"])
@pytest.mark.parametrize("parts", [(0.05, 0.95), (0.5, 0.2, 0.2)])
def test_the_parts_of_a_release_are_together_no_more_than_the_whole(parts, source):
    """Adaptive Gaussian mechanisms compose as 1/z^2 = sum of 1/z_j^2."""
    plan, inverse = in_parts(parts, source), 0.0
    for step, part in enumerate(parts):
        mechanism = tool(plan, Channel.GLOBAL, step=step, seed=step)
        rows = in_classes(torch.full((3, 2000), 9.0), [0, 2, 2], [True, True, True])
        summed = mechanism.clip_in_classes(Channel.GLOBAL, rows)
        norms = summed.value.norm(dim=1) / (0.3 * part**0.5)
        torch.testing.assert_close(norms.float(), torch.tensor([1.0, 0.0, 2.0]), rtol=1e-5, atol=0)
        noise = mechanism.release(Channel.GLOBAL, summed).value * mechanism.expected_count - summed.value
        assert float(noise.std()) == pytest.approx(0.3 * 5.0, rel=0.05), "in every row, those without examples too"
        inverse += (summed.sensitivity / float(noise.std())) ** 2
    assert inverse == pytest.approx(sum(parts) / 5.0**2, rel=0.1)
    assert accounting.noise_multiplier(mechanism.event()) == 5.0
    assert plan.releases(Audience.PUBLIC).num_steps == 1


def test_noise_is_left_out_of_no_row_but_those_that_are_publicly_empty():
    mechanism = tool(in_parts((1.0,)), Channel.GLOBAL)
    summed = mechanism.clip_in_classes(Channel.GLOBAL, in_classes(torch.ones(2, 9), [0, 0], [True, True, False]))
    released = mechanism.release(Channel.GLOBAL, summed).value
    assert [bool(row.all()) for row in released] == [True, True, False]
    assert not released[2].any()


def test_an_example_of_a_class_that_was_declared_absent_moves_nothing():
    """Not refused, which would tell of it: the sums are those of the same client without it."""
    sums = [
        tool(in_parts((1.0,)), Channel.GLOBAL).clip_in_classes(Channel.GLOBAL, in_classes(rows, labels, [True, False]))
        for rows, labels in ((torch.ones(2, 9), [0, 1]), (torch.ones(1, 9), [0]))
    ]
    assert torch.equal(sums[0].value, sums[1].value)
    assert sums[0].value[0].any()


def test_a_step_takes_no_part_of_another_step():
    plan = in_parts((0.05, 0.95))
    first, second = (tool(plan, Channel.GLOBAL, step=step) for step in range(2))
    summed = second.clip_in_classes(Channel.GLOBAL, in_classes(torch.ones(1, 9), [0], [True]))
    with pytest.raises(PrivacyError, match="which is planned for"):
        first.release(Channel.GLOBAL, summed)
