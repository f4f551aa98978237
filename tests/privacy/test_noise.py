import numpy as np
import pytest
import torch

from hushprompt.errors import ConfigError
from hushprompt.privacy.noise import add_gaussian


def test_noise_has_the_asked_mean_and_deviation():
    noise = add_gaussian(torch.zeros(200_000), 3.0, np.random.default_rng(0))
    assert abs(float(noise.mean())) < 4 * 3.0 / 200_000**0.5
    assert abs(float(noise.std()) - 3.0) < 4 * 3.0 / (2 * 200_000) ** 0.5


def test_noise_is_gaussian_in_the_tails():
    noise = add_gaussian(torch.zeros(400_000), 1.0, np.random.default_rng(1)).abs()
    for point, expected in ((1.0, 0.3173), (2.0, 0.0455), (3.0, 0.0027)):
        share = float((noise > point).double().mean())
        assert abs(share - expected) < 5 * (expected / 400_000) ** 0.5


def test_entries_and_streams_are_independent():
    first = add_gaussian(torch.zeros(100_000), 1.0, np.random.default_rng(2))
    second = add_gaussian(torch.zeros(100_000), 1.0, np.random.default_rng(3))
    bound = 5 / 100_000**0.5
    assert abs(float((first * second).mean())) < bound
    assert abs(float((first[1:] * first[:-1]).mean())) < bound


def test_the_same_stream_gives_the_same_noise_and_the_value_is_kept():
    value = torch.arange(6.0).reshape(2, 3)
    twice = [add_gaussian(value, 0.5, np.random.default_rng(4)) for _ in range(2)]
    assert torch.equal(*twice)
    assert torch.equal(value, torch.arange(6.0).reshape(2, 3))
    assert not torch.equal(twice[0], value)


def test_no_noise_leaves_the_value():
    assert torch.equal(add_gaussian(torch.ones(3), 0.0, np.random.default_rng(0)), torch.ones(3))


@pytest.mark.parametrize("std", [-1.0, float("nan"), float("inf")])
def test_an_impossible_deviation_is_refused(std):
    with pytest.raises(ConfigError, match="noise_std"):
        add_gaussian(torch.zeros(2), std, np.random.default_rng(0))


def test_half_precision_is_refused():
    with pytest.raises(TypeError, match="float32 or wider"):
        add_gaussian(torch.zeros(2, dtype=torch.float16), 1.0, np.random.default_rng(0))
