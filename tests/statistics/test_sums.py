"""The two sums of class statistics: what one image can move, and what is publicly expected."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hushprompt.errors import ConfigError, DataError
from hushprompt.privacy.clipping import clipped_class_sums
from hushprompt.statistics.sums import expected


def rows_and_labels(seed, n=7, r=5, c=4):
    rng = np.random.default_rng(seed)
    scales = 10.0 ** rng.integers(-3, 4, size=(n, 1))
    rows = torch.from_numpy(rng.normal(size=(n, r)) * scales)
    rows[rng.integers(n)] *= 1e200 if seed % 5 == 0 else 1.0
    return rows, torch.from_numpy(rng.integers(c, size=n))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), clip_norm=st.sampled_from([1e-3, 0.7, 20.0]), out=st.integers(0, 6))
def test_one_image_moves_all_class_sums_together_by_at_most_the_clip_norm(seed, clip_norm, out):
    rows, labels = rows_and_labels(seed)
    kept = torch.arange(7) != out
    whole = clipped_class_sums(rows, labels, 4, clip_norm)
    without = clipped_class_sums(rows[kept], labels[kept], 4, clip_norm)
    assert (whole.value - without.value).norm() <= clip_norm * (1 + 1e-12) == whole.sensitivity * (1 + 1e-12)
    relabeled = labels.clone()
    relabeled[out] = (labels[out] + 1) % 4
    exchanged = clipped_class_sums(rows, relabeled, 4, clip_norm)
    assert (exchanged.value - without.value).norm() <= clip_norm * (1 + 1e-12), "removing and adding: C each"
    assert (exchanged.value - whole.value).norm() <= 2 * clip_norm


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308])
def test_a_row_that_is_not_finite_counts_as_zero(value):
    rows = torch.tensor([[value, value], [0.3, 0.4]])
    sums = clipped_class_sums(rows.double(), torch.tensor([0, 1]), 2, 1.0).value
    torch.testing.assert_close(sums, torch.tensor([[0.0, 0.0], [0.3, 0.4]]).double(), rtol=1e-6, atol=0)


def test_sums_are_float64_and_no_rows_give_zeros():
    sums = clipped_class_sums(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 2, 1.0).value
    assert sums.dtype == torch.float64
    assert torch.equal(sums, torch.zeros(2, 3).double())


@pytest.mark.parametrize("labels", [[0, 2], [-1, 0]])
def test_labels_out_of_range_are_refused(labels):
    with pytest.raises(DataError, match="label from 0 to 1"):
        clipped_class_sums(torch.ones(2, 3), torch.tensor(labels), 2, 1.0)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.inf, math.nan])
def test_the_clip_norm_is_a_positive_number(clip_norm):
    with pytest.raises(ConfigError, match="clip_norm"):
        clipped_class_sums(torch.ones(1, 3), torch.tensor([0]), 2, clip_norm)


def test_expected_counts_come_from_public_numbers():
    counts, holders = expected([10, 6, 5], [[0, 1], [1, 2, 3], []], 5)
    assert counts.tolist() == [5.0, 7.0, 2.0, 2.0, 0.0]
    assert holders.tolist() == [1.0, 2.0, 1.0, 1.0, 0.0]
