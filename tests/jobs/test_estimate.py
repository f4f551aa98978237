import pytest

from hushprompt.jobs.progress import Estimate

A, B = ("promptfl", 40), ("fedotp", 40)


def test_nothing_is_said_before_anything_is_known():
    estimate = Estimate([A, A], num_workers=1)
    assert estimate.left(0.0) is None
    estimate.progress("first", A, 0.0, 0.0)
    assert estimate.left(1.0) is None


def test_a_first_run_is_guessed_from_its_own_pace():
    estimate = Estimate([A, A], num_workers=1)
    estimate.progress("first", A, 0.0, 0.0)
    estimate.progress("first", A, 5.0, 0.25)
    assert estimate.left(5.0) == pytest.approx(15 + 20)


def test_runs_of_a_kind_take_as_long_as_those_before_them():
    estimate = Estimate([A, A, A, B, B], num_workers=2)
    for name, kind, seconds in (("a", A, 10.0), ("b", B, 30.0)):
        estimate.progress(name, kind, 0.0, 0.0)
        estimate.end(name, kind, seconds, is_done=True)
    assert estimate.left(30.0) == pytest.approx((10 + 10 + 30) / 2)


def test_a_run_that_was_half_done_or_failed_is_no_measurement():
    estimate = Estimate([A, A, A, A], num_workers=1)
    estimate.progress("resumed", A, 0.0, 0.5)
    estimate.end("resumed", A, 1.0, is_done=True)
    estimate.progress("failed", A, 1.0, 0.0)
    estimate.end("failed", A, 1.1, is_done=False)
    estimate.end("never begun", A, 1.2, is_done=False)
    assert estimate.left(2.0) is None
    estimate.progress("last", A, 2.0, 0.5)
    estimate.progress("last", A, 4.0, 0.75)
    assert estimate.left(4.0) == pytest.approx(2.0)
