import math

import pytest
import torch

from hushprompt.evaluation.metrics import accuracy, expected_calibration_error, harmonic_mean


def test_accuracy_counts_the_largest_logit():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 1.0], [5.0, 6.0, 0.0]])
    assert accuracy(logits, torch.tensor([0, 2, 0])) == pytest.approx(2 / 3)
    assert math.isnan(accuracy(logits[:0], torch.tensor([], dtype=torch.long)))


def test_harmonic_mean_is_zero_with_a_zero_and_never_above_the_mean():
    assert harmonic_mean(0.0, 0.7) == 0.0
    assert harmonic_mean(0.6, 0.6) == pytest.approx(0.6)
    assert harmonic_mean(0.9, 0.1) == pytest.approx(0.18)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    logits = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.8, 0.2], [0.8, 0.2]]).log()
    assert expected_calibration_error(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(0.05, abs=1e-6)
    assert expected_calibration_error(logits, torch.tensor([0, 0, 1, 1])) == pytest.approx(0.3, abs=1e-6)


def test_calibration_error_averages_bins_by_their_size():
    sure, unsure = torch.tensor([0.99, 0.01]).log(), torch.tensor([0.55, 0.45]).log()
    logits = torch.stack([sure, sure, sure, unsure])
    expected = 3 / 4 * abs(2 / 3 - 0.99) + 1 / 4 * abs(1 - 0.55)
    assert expected_calibration_error(logits, torch.tensor([0, 0, 1, 0])) == pytest.approx(expected, abs=1e-6)
