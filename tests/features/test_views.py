import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushprompt.features.cache import random_box, random_view
from hushprompt.seeding import stream


@given(
    height=st.integers(1, 300), width=st.integers(1, 300), min_scale=st.floats(0.01, 1.0), seed=st.integers(0, 10**6)
)
def test_a_box_lies_inside_the_image(height, width, min_scale, seed):
    top, left, box_height, box_width = random_box(height, width, np.random.default_rng(seed), min_scale)
    assert 0 <= top <= top + box_height <= height
    assert 0 <= left <= left + box_width <= width
    assert min(box_height, box_width) > 0


def test_boxes_have_the_areas_and_ratios_of_the_source():
    boxes = [random_box(400, 400, stream(0, "box", n), 0.08) for n in range(2000)]
    areas = np.array([h * w for _, _, h, w in boxes]) / 160_000
    ratios = np.array([w / h for _, _, h, w in boxes])
    assert 0.079 < areas.min() < 0.1
    assert areas.max() > 0.9
    assert 0.74 < ratios.min() < 0.76 < 1.32 < ratios.max() < 1.35
    assert np.log(ratios).mean() == pytest.approx(0, abs=0.02)
    corners = np.array([(top / (401 - h), left / (401 - w)) for top, left, h, w in boxes])
    assert corners.mean(axis=0) == pytest.approx(0.5, abs=0.03)


def test_a_very_long_image_gives_its_largest_central_box():
    assert random_box(300, 3, np.random.default_rng(0), 1.0) == (148, 0, 4, 3)


def test_a_view_is_a_square_of_the_asked_size_and_depends_on_its_stream_alone():
    image = stream(0, "image").integers(0, 256, size=(40, 70, 3)).astype(np.uint8)
    first, again, other = (random_view(image, stream(1, "views", 0, n), min_scale=0.3, size=24) for n in (0, 0, 1))
    assert first.shape == (24, 24, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_half_of_the_views_are_flipped():
    ramp = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None], 64, axis=0).repeat(3, axis=2)
    views = [random_view(ramp, stream(2, "views", n), min_scale=0.5, size=16) for n in range(400)]
    num_flipped = sum(bool(view[0, 0, 0] > view[0, -1, 0]) for view in views)
    assert 160 < num_flipped < 240


def test_the_whole_image_at_its_own_size_stays_as_it_is_or_is_mirrored():
    image = stream(0, "image").integers(0, 256, size=(12, 12, 3)).astype(np.uint8)
    whole = [random_view(image, stream(3, "views", n), min_scale=1.0, size=12) for n in range(60)]
    assert any(np.array_equal(view, image) for view in whole)
    assert any(np.array_equal(view, image[:, ::-1]) for view in whole)
