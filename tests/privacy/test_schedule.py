import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushprompt.errors import ConfigError
from hushprompt.privacy.schedule import draw_cohorts, survivors


def drawn(num_clients, cohort_size, num_rounds, seed=0):
    return draw_cohorts(num_clients, cohort_size, num_rounds, np.random.default_rng(seed))


@given(st.integers(1, 12), st.integers(0, 30), st.data())
def test_a_cohort_has_different_clients_and_everyone_takes_part_equally_often_up_to_one(num_clients, num_rounds, data):
    size = data.draw(st.integers(1, num_clients))
    cohorts = drawn(num_clients, size, num_rounds, data.draw(st.integers(0, 5)))
    counts = np.zeros(num_clients, dtype=int)
    for index in range(num_rounds):
        cohort = cohorts[index]
        assert len(np.unique(cohort)) == size
        assert (np.diff(cohort) > 0).all()
        counts[cohort] += 1
        assert counts.max() - counts.min() <= 1
        assert cohorts.most_rounds[index + 1] == counts.max()
    assert cohorts.most_rounds[0] == 0
    assert cohorts.rounds_of_clients().tolist() == counts.tolist()
    assert len(cohorts) == num_rounds


def test_no_cohort_size_is_everyone():
    cohorts = drawn(5, None, 3)
    assert cohorts.members.tolist() == [[0, 1, 2, 3, 4]] * 3
    assert not cohorts.is_partial
    assert cohorts.most_rounds.tolist() == [0, 1, 2, 3]


def test_cohorts_are_random_and_the_same_for_the_same_stream():
    assert drawn(50, 10, 20).members.tolist() == drawn(50, 10, 20).members.tolist()
    assert drawn(50, 10, 20).members.tolist() != drawn(50, 10, 20, seed=1).members.tolist()
    pairs = {tuple(cohort[:2]) for cohort in drawn(50, 10, 20).members.tolist()}
    assert len(pairs) > 15


def test_a_cohort_larger_than_the_federation_is_refused():
    with pytest.raises(ConfigError, match="at most the number of clients, 3, got 4"):
        drawn(3, 4, 1)


def test_clients_fail_on_their_own_at_the_rate():
    cohort = np.arange(10_000)
    left = survivors(cohort, 0.3, np.random.default_rng(0))
    assert len(left) == pytest.approx(7_000, abs=5 * (10_000 * 0.21) ** 0.5)
    assert survivors(cohort, 0.0, np.random.default_rng(0)).tolist() == cohort.tolist()
    assert len(survivors(cohort, 1.0, np.random.default_rng(0))) == 0
