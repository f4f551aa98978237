"""What rounding can do to a sum is in the noise, and a model that rounds more than that is refused."""

import dataclasses

import numpy as np
import pytest
import torch

from helpers.runs import Silent, fresh
from hushprompt.api.training import plan
from hushprompt.config import parse as configs
from hushprompt.errors import PrivacyError
from hushprompt.evaluation.private import BATCH_SIZE, in_equal_batches
from hushprompt.federation import rounding
from hushprompt.federation.planning import plan_arms
from hushprompt.federation.setup import load_model
from hushprompt.federation.simulate import run
from hushprompt.methods.promptfl import PromptFL
from hushprompt.privacy.adaptive import COUNT_SENSITIVITY, count_std
from hushprompt.privacy.clipping import RAMP, clipped_sum, unclipped_shares
from hushprompt.privacy.config import Channel, PrivacyConfig
from hushprompt.privacy.mechanisms import base
from hushprompt.privacy.plan import make_plan
from hushprompt.privacy.sampling import PoissonSampler

GIVEN = {"epsilon": None, "noise_multiplier_local": 2.0, "noise_multiplier_global": 2.0, "delta": 1e-5}


def plan_of(num_examples=1000, **privacy):
    config = PrivacyConfig(**{"noise_source": "seeded", **GIVEN, **privacy})
    sampler = PoissonSampler(sampling_prob=0.5)
    return make_plan(config, sampler, channels=frozenset(Channel), num_rounds=1, client_sizes=[10, num_examples])


def noise_of(plan, seed=0):
    tool = plan.mechanism(allowed=Channel.LOCAL, expected_count=1.0, rng=np.random.default_rng(seed))
    return tool.release(Channel.LOCAL, tool.clip(Channel.LOCAL, torch.zeros(1, 50_000))).value


def arm_of(config):
    return plan_arms(config, [24, 24, 24])[-1]


def rows_that_round(by):
    """PromptFL whose gradients move by a share of themselves with the number of examples in their batch."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Rounds(PromptFL):
        def gradients(self, model, context, batch):
            rows, losses = super().gradients(model, context, batch)
            return rows * (1 + by * (len(rows) % 2)), losses

    return Rounds(num_ctx=4)


def test_noise_is_larger_by_what_rounding_of_all_other_examples_can_move():
    plain, larger = noise_of(plan_of(rounding=0.0)), noise_of(plan_of(rounding=5e-5))
    torch.testing.assert_close(larger, plain * 1.05)
    plan = plan_of(rounding=5e-5)
    assert plan.release_plan.sensitivity(Channel.LOCAL) == pytest.approx(1.05)
    assert plan.release_plan.noise_multipliers == plan_of(rounding=0.0).release_plan.noise_multipliers, "same epsilon"


def test_a_sum_moves_by_no_more_than_the_sensitivity_says():
    """All other rows move by rho of the clip norm, in the worst direction, and one row is new."""
    rng = torch.Generator().manual_seed(1)
    rho, num, new = 5e-5, 1000, torch.nn.functional.normalize(torch.ones(8), dim=0)
    rows = torch.randn(num, 8, generator=rng, dtype=torch.float64)
    moved = torch.cat([rows + rho * rows.norm(dim=1, keepdim=True).clamp(min=1) * new, 5 * new[None]])
    distance = float((clipped_sum(moved, 1.0).value - clipped_sum(rows, 1.0).value).norm())
    assert 1.005 < distance <= plan_of(num, rounding=rho).release_plan.sensitivity(Channel.LOCAL)


def test_the_count_of_adaptive_norms_moves_by_no_more_than_its_noise_is_for():
    rho, num = 1e-5, 1000
    plan = plan_of(num, rounding=rho, adaptive_quantile=0.5)
    rows = torch.full((num, 1), 1 + RAMP / 2 - 2e-5, dtype=torch.float64)
    moved = float((unclipped_shares(rows * (1 - rho), 1.0) - unclipped_shares(rows, 1.0)).sum()) + 0.5
    assert moved > 1.1 * COUNT_SENSITIVITY, "rounding matters here"
    tool = plan.mechanism(allowed=Channel.LOCAL, expected_count=1e9, rng=np.random.default_rng(0))
    drawn = []
    object.__setattr__(tool, "rng", Draws(drawn))
    tool.release(Channel.LOCAL, tool.clip(Channel.LOCAL, rows.float()))
    assert drawn[1] / count_std(2.0, plan.config.adaptive_share) >= moved / COUNT_SENSITIVITY - 1e-6


class Draws(np.random.Generator):
    """A generator that writes down the deviations it is asked for."""

    def __init__(self, stds):
        super().__init__(np.random.PCG64(0))
        self.stds = stds

    def normal(self, mean, std, size):
        self.stds.append(std)
        return np.zeros(size)


def test_so_many_examples_that_rounding_would_matter_are_refused():
    with pytest.raises(PrivacyError, match=r"20000 examples.* larger by 20%.* Set privacy\.rounding to at most 5e-06"):
        plan_of(20_000)
    assert plan_of(20_000, rounding=5e-6).release_plan.rounding_margin == pytest.approx(0.1)


def test_whole_clients_are_computed_apart_so_nothing_is_added():
    assert plan_of(50_000, privacy_unit="client", delta=1e-2).release_plan.rounding_margin == 0


@pytest.mark.parametrize("method", ["dp_fpl", "fedotp", "fedclip", "fedpgp", "promptfolio", "linear_probe"])
def test_a_model_that_rounds_as_all_do_passes(toy_values, tmp_path, method):
    values = {**toy_values, "references": [], "method": {"name": method}}
    config = configs.parse(values)
    arms = plan_arms(config, [24, 24, 24])
    model = load_model(config, config.data.load(), arms)
    rounding.check_rounding(arms[-1], model, tmp_path)
    measured = rounding.measure(arms[-1], model)
    assert 0 <= measured < 2.5e-6


def test_rows_that_are_clipped_chunk_by_chunk_are_all_looked_at(toy_values, monkeypatch):
    monkeypatch.setattr(base, "NUMBERS_AT_ONCE", 1)
    config = configs.parse({**toy_values, "references": [], "method": {"name": "linear_probe"}})
    arms = plan_arms(config, [24, 24, 24])
    assert 0 <= rounding.measure(arms[-1], load_model(config, config.data.load(), arms)) < 2.5e-6


def test_a_model_that_rounds_more_is_refused_and_the_bound_that_it_keeps_is_named(toy_config, model, tmp_path):
    arm = arm_of(toy_config)
    coarse = dataclasses.replace(arm, method=rows_that_round(1e-4))
    with pytest.raises(PrivacyError, match=r"move by up to .*4 times that must fit.* Set privacy\.rounding = "):
        rounding.check_rounding(coarse, model, tmp_path)
    fine = dataclasses.replace(arm, method=rows_that_round(1e-7))
    rounding.check_rounding(fine, model, tmp_path / "another")


def test_it_is_measured_once_and_again_where_the_file_is_damaged(toy_config, model, tmp_path, monkeypatch):
    arm = arm_of(toy_config)
    asked = []
    true_measure = rounding.measure
    monkeypatch.setattr(rounding, "measure", lambda *args: asked.append(1) or true_measure(*args))
    for _ in range(2):
        rounding.check_rounding(arm, model, tmp_path)
    assert len(asked) == 1
    (kept,) = (tmp_path / "rounding").iterdir()
    kept.write_text("{")
    rounding.check_rounding(arm, model, tmp_path)
    assert len(asked) == 2
    monkeypatch.setattr(rounding, "PASSES", rounding.PASSES + 1)
    rounding.check_rounding(arm, model, tmp_path)
    assert len(asked) == 3, "gradients are computed in another way"


def test_a_run_on_a_model_that_rounds_more_is_refused_before_anything_is_charged(toy_config, tmp_path, monkeypatch):
    monkeypatch.setattr(rounding, "measure", lambda *args: 1.0)
    with pytest.raises(PrivacyError, match="clipped gradients of this model move"):
        run(toy_config, fresh(tmp_path), Silent())
    assert not list(tmp_path.rglob("ledger.jsonl"))
    assert not list(tmp_path.rglob("checkpoint"))


def test_the_statement_says_it_and_so_does_an_older_run(toy_values):
    said = plan(configs.parse(toy_values)).statement()
    assert "Noise is made larger by 0.00024 of itself" in said
    assert "24 examples of the largest client" in said
    assert "zero_shot: The model" not in said, "nothing is trained there"
    stored = configs.parse(configs.as_stored(toy_values))
    assert "Rounding is not accounted for" in plan(stored).statement()


def test_right_answers_do_not_depend_on_the_number_of_other_images():
    def score(
        images,
    ):  # as matrix kernels do: last bits follow from the size of the batch
        assert len(images) == BATCH_SIZE
        return images @ torch.eye(2) + 1e-7 * len(images)

    images = torch.rand(BATCH_SIZE + 3, 2)
    assert torch.equal(in_equal_batches(score, images)[:-1], in_equal_batches(score, images[:-1]))
