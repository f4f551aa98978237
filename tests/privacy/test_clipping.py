import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from hushprompt.errors import ConfigError, PrivacyError
from hushprompt.privacy.clipping import ClippedSum, add_up, clip_factors, clipped_sum
from hushprompt.privacy.config import PrivacyConfig
from hushprompt.privacy.mechanisms.batch_clipping import clipped_means

finite = st.floats(-1e6, 1e6, width=32)
batches = npst.arrays("float32", st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=finite)


@given(batches, st.floats(1e-3, 1e3))
def test_removing_an_example_moves_the_sum_by_at_most_its_sensitivity(values, clip_norm):
    grads = torch.from_numpy(values)
    whole = clipped_sum(grads.double(), clip_norm)
    for index in range(len(grads)):
        rest = clipped_sum(torch.cat([grads[:index], grads[index + 1 :]]).double(), clip_norm)
        assert (whole.value - rest.value).norm() <= whole.sensitivity * (1 + 1e-9)


@given(batches, st.floats(1e-3, 1e3))
def test_float32_contributions_stay_in_the_ball(values, clip_norm):
    grads = torch.from_numpy(values)
    clipped = (clip_factors(grads, clip_norm)[:, None] * grads).double()
    assert (clipped.norm(dim=1) <= clip_norm * (1 + 1e-6)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_clipped_row_is_inside_the_ball_by_more_than_rounding_carries_it_out(dtype):
    rows = torch.randn(100, 33, generator=torch.Generator().manual_seed(1), dtype=dtype)
    rows *= torch.logspace(-3, 4, 100, dtype=dtype)[:, None]
    for clip_norm in (1e-3, 0.7, 1e3):
        for clip in (lambda row, norm: clipped_sum(row[None], norm), lambda row, norm: clipped_means([row], norm)):
            norms = [float(clip(row, clip_norm).value.double().norm()) for row in rows]
            assert clip_norm * (1 - 2e-6) < max(norms) <= clip_norm


def test_one_huge_example_counts_no_more_than_a_small_one():
    grads = torch.tensor([[3.0, 4.0], [3e20, 4e20], [0.3, 0.4]])
    torch.testing.assert_close(clipped_sum(grads[:1], 0.5).value, torch.tensor([0.3, 0.4]), rtol=1e-5, atol=0)
    assert clipped_sum(grads, 0.5).value.norm() <= 1.5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_a_gradient_that_is_not_finite_counts_as_zero(bad):
    grads = torch.tensor([[bad, 3e38], [0.3, 0.4]])
    torch.testing.assert_close(clipped_sum(grads, 1.0).value, torch.tensor([0.3, 0.4]))


def test_small_gradients_are_not_scaled_up_and_zero_stays_zero():
    grads = torch.tensor([[0.1, 0.0], [0.0, 0.0]])
    assert torch.equal(clipped_sum(grads, 1.0).value, torch.tensor([0.1, 0.0]))


def test_an_empty_batch_gives_a_zero_sum_of_the_same_shape():
    assert torch.equal(clipped_sum(torch.zeros(0, 2, 3), 1.0).value, torch.zeros(2, 3))


def test_a_useless_clip_norm_is_refused():
    with pytest.raises(ConfigError, match="clip_norm must be > 0"):
        clipped_sum(torch.ones(1, 2), 0.0)
    for norm in (1e-316, 1e31):
        with pytest.raises(ConfigError, match="clip_norm must lie in"):
            clipped_sum(torch.ones(1, 2).double(), norm)
        with pytest.raises(ConfigError, match="clip_norm_global must lie in"):
            PrivacyConfig(clip_norm_global=norm)
    with pytest.raises(ConfigError, match="finite"):
        clipped_sum(torch.ones(1, 2), float("inf"))


def test_adding_clients_keeps_the_sensitivity_of_one_example():
    parts = [clipped_sum(torch.full((2, 2), float(k)), 0.7) for k in (1, 2)]
    total = add_up(parts)
    assert total.sensitivity == 0.7
    torch.testing.assert_close(total.value, parts[0].value + parts[1].value)


def test_sums_with_different_bounds_are_not_added():
    with pytest.raises(PrivacyError, match="different sensitivities"):
        add_up([ClippedSum(torch.zeros(2), 1.0), ClippedSum(torch.zeros(2), 2.0)])
    with pytest.raises(PrivacyError, match="no client"):
        add_up([])
