import logging

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import binom, norm

import hushprompt as hp
from helpers.layouts import image
from hushprompt.config import parse as configs
from hushprompt.federation.planning import plan_arms
from hushprompt.federation.setup import copies_note
from hushprompt.privacy.config import Audience
from hushprompt.privacy.copies import epsilon_of_copies

POISSON = {"sampling": {"name": "poisson", "sampling_prob": 0.2, "steps_per_round": 1}, "training": {"num_rounds": 1}}
DISJOINT = {"sampling": {"name": "disjoint", "steps_per_round": 1}, "training": {"num_rounds": 4}}


def plan(toy_values, **sections):
    values = {**toy_values, "method": {"name": "local_only"}, **sections}
    noise = {"epsilon": "none", "noise_multiplier_local": 2.0, "noise_multiplier_global": 2.0}
    values["privacy"] = {**noise, "delta": 1e-5, **sections.get("privacy", {})}
    return plan_arms(configs.parse(values), [50, 50])[-1].plan


def true_epsilon(shift_probs, z, delta):
    """Of one release: the larger of both directions, by integrating the densities over a fine grid."""
    grid = np.linspace(-12 * z, 12 * z + len(shift_probs), 200_001)
    other = norm.pdf(grid, scale=z)
    mine = sum(prob * norm.pdf(grid, loc=shift, scale=z) for shift, prob in enumerate(shift_probs))

    def excess(epsilon):
        gaps = [np.maximum(a - np.exp(epsilon) * b, 0).sum() for a, b in ((mine, other), (other, mine))]
        return max(gaps) * (grid[1] - grid[0]) - delta

    return brentq(excess, 0, 60)


@pytest.mark.parametrize("num_copies", [2, 5])
def test_one_poisson_release_is_a_mixture_of_gaussians(toy_values, num_copies):
    found = epsilon_of_copies(plan(toy_values, **POISSON), Audience.PERSONAL, num_copies)
    true = true_epsilon(binom.pmf(range(num_copies + 1), num_copies, 0.2), 2.0, 1e-5)
    assert true <= found <= true * 1.01 + 0.01


def test_without_sampling_copies_divide_the_noise(toy_values):
    once = plan(toy_values, **DISJOINT)
    third = plan(toy_values, **DISJOINT, privacy={"noise_multiplier_local": 2.0 / 3})
    expected = third.epsilon(Audience.PERSONAL)
    assert epsilon_of_copies(once, Audience.PERSONAL, 3) == pytest.approx(expected, rel=1e-9)
    assert epsilon_of_copies(once, Audience.PERSONAL, 1) == once.epsilon(Audience.PERSONAL)


def test_more_copies_are_protected_less_and_never_more_than_one(toy_values):
    made = plan(toy_values, **POISSON)
    values = [epsilon_of_copies(made, Audience.PERSONAL, k) for k in (1, 2, 3, 40)]
    assert values == sorted(values)
    assert values[0] < values[1]
    unsampled = plan(
        toy_values, sampling={"name": "poisson", "sampling_prob": 1.0, "steps_per_round": 1}, training={"num_rounds": 1}
    )
    assert values[2] < epsilon_of_copies(unsampled, Audience.PERSONAL, 3)
    assert values[3] == epsilon_of_copies(unsampled, Audience.PERSONAL, 40)  # too many to count the sampling


def test_copies_within_a_client_that_is_protected_whole_do_not_matter(toy_values):
    made = plan(
        toy_values, method={"name": "promptfl"}, **POISSON,
        privacy={"privacy_unit": "client", "audience": "public", "delta": 1e-2},
    )  # fmt: skip
    assert epsilon_of_copies(made, Audience.PUBLIC, 7) == made.epsilon(Audience.PUBLIC)
    assert copies_note(made, {0: {7: 1}}) == ""


def test_a_run_tells_once_what_its_epsilon_is_worth_to_copies(toy_values, tmp_path, caplog):
    for number, place in enumerate(("train/cat", "train/dog", "test/cat", "test/dog")):
        for index in range(4):
            image(tmp_path / "data" / place / f"{index}.png", 10 * number + index)
    image(tmp_path / "data" / "train" / "cat" / "again.png", 1)
    values = {
        **toy_values, **POISSON, "data": {"name": "folder", "root": str(tmp_path / "data")},
        "partition": {"name": "disjoint_classes", "num_clients": 2}, "privacy": {"epsilon": 2.0, "delta": 1e-3},
        "runtime": {"cache_dir": str(tmp_path / "cache")},
    }  # fmt: skip
    with caplog.at_level(logging.WARNING):
        hp.run(configs.parse(values), out=tmp_path / "run", progress=False)
    (line,) = [record.getMessage() for record in caplog.records if "Data set" in record.getMessage()]
    assert "again.png" in line
    assert "for an image that stands 2 times in one client's training set, all its copies together" in line
    assert "not 2, at delta = 0.001 towards" in line
    assert "add_remove, Poisson sampling with probability 0.2" in line
    assert "copies" not in (tmp_path / "run" / "privacy.json").read_text()  # what the data hold is not published
