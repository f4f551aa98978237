"""Runs with secure noise, from outside: nothing that protects data follows from a seed, and sums keep their digits."""

import sys

import numpy as np
import pytest
import torch

from helpers.runs import run_with
from hushprompt import seeding
from hushprompt.privacy.mechanisms import gaussian

KNOWN_TO_ALL = {"init", "partition", "cohorts", "dropout", "view", "method", "split"}
"""Purposes of draws that protect nothing: everybody may know them, and the guarantee holds all the same."""
PRIVACY = {"epsilon": "none", "noise_multiplier_local": 2.0, "noise_multiplier_global": 2.0, "delta": 1e-3}
PRIVACY["noise_source"] = "secure"
FULL = {"name": "disjoint", "steps_per_round": 1}
KINDS = {
    "sums": {"privacy": {**PRIVACY, "adaptive_quantile": 0.5}},
    "gradients": {
        "privacy": {**PRIVACY, "noise_at": "client"},
        "sampling": {"name": "poisson_equal_batches", "batch_size": 6},
    },
    "copies": {
        "privacy": {**PRIVACY, "noise_at": "client"},
        "training": {"num_rounds": 1, "local_steps": 2},
        "sampling": {"name": "disjoint", "steps_per_round": 2},
    },
    "shares": {"privacy": {**PRIVACY, "noise_at": "shares", "adaptive_quantile": 0.5}},
    "counts": {"evaluation": {"metrics_epsilon": 2.0, "metrics_delta": 1e-3}},
}


class Seeded(np.random.Generator):
    """A generator from which nothing may be drawn."""

    def __init__(self):
        super().__init__(np.random.PCG64(0))

    def __getattribute__(self, name):
        assert name.startswith("_"), f"{name} is drawn from a generator that follows from the run's seed"
        return super().__getattribute__(name)


def secure_run(values, tmp_path, kind):
    settings = {"privacy": PRIVACY, "training": {"num_rounds": 1}, "references": [], "sampling": FULL}
    return run_with({**values, **settings, **KINDS[kind]}, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_protects_data_is_drawn_from_a_seeded_generator(toy_values, tmp_path, monkeypatch, kind):
    true, asked = seeding.stream, set()

    def stream(seed, purpose, *place):
        asked.add(purpose)
        is_public = purpose in KNOWN_TO_ALL or purpose.startswith("toy ")
        return true(seed, purpose, *place) if is_public else Seeded()

    for name, module in list(sys.modules.items()):
        if name.startswith("hushprompt") and getattr(module, "stream", None) is true:
            monkeypatch.setattr(module, "stream", stream)
    before = torch.random.get_rng_state()
    secure_run(toy_values, tmp_path, kind)
    assert asked >= {"batch", "noise"}, "or this test looks at nothing"
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("method", ["dp_fpl", "fedpgp"])
@pytest.mark.parametrize("kind", ["sums", "gradients"])
def test_sums_keep_their_digits_until_they_are_put_on_the_grid(toy_values, tmp_path, monkeypatch, kind, method):
    """What float32 holds would be rounded by more than the margin of clipping once many contributions are added."""
    true, seen = gaussian.add_secure_gaussian, []
    monkeypatch.setattr(
        gaussian, "add_secure_gaussian", lambda value, *given: seen.append(value) or true(value, *given)
    )
    alone = {"method": {**toy_values["method"], "name": method}, "partition": {"name": "iid", "num_clients": 1}}
    secure_run({**toy_values, **alone}, tmp_path, kind)
    assert {value.dtype for value in seen} == {torch.float64}
    assert any(torch.count_nonzero(value) for value in seen)
    for value in seen:
        is_count_or_empty = value.numel() == 1 or not torch.count_nonzero(value)
        assert is_count_or_empty or not torch.equal(value, value.float().double()), "it was rounded on its way"
