import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushprompt.privacy.bisection import AtMost, smallest


def counted(function):
    asked = []

    def ask(x):
        asked.append(x)
        return function(x)

    return ask, asked


@given(st.floats(0.1, 5), st.floats(0.3, 3), st.sampled_from([1e-2, 1e-4, 1e-9]))
def test_fewer_questions_give_the_same_answer(limit, power, tolerance):
    def falling(x):
        return x**-power + 0.01 / x**3

    low, high = 1e-3, 1e3
    if falling(high) > limit:
        return
    condition = AtMost(falling, limit)
    assert not condition(low)
    assert condition(high)
    plain = smallest(lambda x: falling(x) <= limit, low, high, tolerance)
    assert condition.smallest(low, high, tolerance) == plain


def test_a_smooth_function_is_asked_seldom():
    ask, asked = counted(lambda x: 3.3 / x * (1 + 0.1 / x))
    condition = AtMost(ask, 1.0)
    assert not condition(2.0)
    assert condition(4.0)
    condition.smallest(2.0, 4.0, 1e-4)
    plain, plainly_asked = counted(lambda x: 3.3 / x * (1 + 0.1 / x) <= 1.0)
    smallest(plain, 2.0, 4.0, 1e-4)
    assert len(asked) < 0.7 * len(plainly_asked)


@pytest.mark.parametrize("function", [lambda x: math.inf if x < 1 else 1 / x, lambda x: 2.0 if x < 1.7 else 0.0])
def test_a_function_that_jumps_is_bisected(function):
    condition = AtMost(function, 0.5)
    assert not condition(0.5)
    assert condition(8.0)
    assert condition.smallest(0.5, 8.0, 1e-6) == smallest(lambda x: function(x) <= 0.5, 0.5, 8.0, 1e-6)


def test_what_is_known_is_not_asked_again():
    ask, asked = counted(lambda x: 1 / x)
    condition = AtMost(ask, 0.5)
    assert [condition(x) for x in (3.0, 4.0, 1.0, 0.5)] == [True, True, False, False]
    assert asked == [3.0, 1.0]
