import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushprompt.reporting.series import Style
from hushprompt.reporting.svg import Scale, fitted, log_padded, mark, padded, place_labels, spread_out

STYLE = Style(color=0, shape=1, dash=0, is_hollow=False)


def test_scales_map_ends_to_ends_and_the_middle_to_the_middle():
    assert [Scale(0, 10, 100, 200)(v) for v in (0, 5, 10)] == [100, 150, 200]
    assert [Scale(0, 10, 200, 100)(v) for v in (0, 5, 10)] == [200, 150, 100]
    assert [Scale(0.1, 10, 0, 100, is_log=True)(v) for v in (0.1, 1, 10)] == [0, 50, 100]


def test_a_value_outside_a_scale_stands_on_its_edge():
    assert [Scale(20, 60, 200, 100)(value) for value in (3, 20, 99)] == [200, 200, 100]


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (Scale(38, 62, 0, 1), [40, 45, 50, 55, 60]),
        (Scale(1, 4, 0, 1), [1, 2, 3, 4]),
        (Scale(0.09, 11, 0, 1, is_log=True), [0.1, 0.2, 0.5, 1, 2, 5, 10]),
        (Scale(1e-3, 2e3, 0, 1, is_log=True), [0.001, 0.01, 0.1, 1, 10, 100, 1000]),
        (Scale(0.9, 4.4, 0, 1, is_log=True), [1, 2]),
    ],
)
def test_ticks_are_round_values_inside(scale, ticks):
    assert scale.ticks() == pytest.approx(ticks)


def test_domains_have_a_margin_and_a_least_width_and_stay_inside():
    assert padded([50, float("nan")], least=4) == (48, 52)
    assert padded([0, 100], least=4, low=0, high=100) == (0, 100)
    low, high = log_padded([2.0])
    assert low < 2 < high


@given(st.lists(st.floats(0, 200), min_size=1, max_size=12).map(sorted))
def test_labels_move_apart_keep_their_order_and_stay_inside(positions):
    moved = spread_out(positions, 0.0, 200.0, 12.0)
    assert all(b - a >= 12 - 1e-6 for a, b in pairwise(moved))
    assert moved[0] >= -1e-6
    assert moved[-1] <= 200 + 1e-6


def test_labels_that_are_far_apart_do_not_move():
    assert spread_out([10.0, 50.0, 90.0], 0.0, 100.0, 12.0) == [10.0, 50.0, 90.0]


def test_names_of_points_that_lie_together_do_not_cover_each_other():
    points = [(f"series {index}", 150.0 + index, 150.0, STYLE) for index in range(4)]
    labels = ET.fromstring(f"<g>{place_labels(points, (0, 0, 340, 340))}</g>")
    boxes = [(float(t.get("x")), float(t.get("y"))) for t in labels]
    assert all(abs(a[1] - b[1]) >= 8 or abs(a[0] - b[0]) >= 50 for i, a in enumerate(boxes) for b in boxes[:i])


def test_long_names_are_cut_and_marks_carry_a_tip():
    assert fitted("short", 100) == "short"
    assert len(fitted("a very long name of a method", 80)) <= 12
    drawn = ET.fromstring(mark(STYLE, 10, 20.126, "local 3 < 4"))
    assert drawn.get("transform") == "translate(10 20.13)"
    assert drawn.get("class") == "mark s0"
    assert drawn.find("title").text == "local 3 < 4"
    hollow = mark(Style(color=None, shape=0, dash=0, is_hollow=True), 0, 0, "")
    assert 'class="mark hollow ref"' in hollow
