"""Why the public is charged for releases that it never sees: an attack on the global prompt that reads them."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta

from hushprompt.privacy import accounting
from hushprompt.privacy.config import Audience, Channel, PrivacyConfig
from hushprompt.privacy.plan import make_plan
from hushprompt.privacy.releases import GaussianReleases
from hushprompt.privacy.sampling import DisjointSampler

NUM_OTHERS, NUM_TRIALS = 60, 400
BOTH = frozenset(Channel)


def plan_of(z_local, z_global=10.0):
    config = PrivacyConfig(
        noise_source="seeded",
        epsilon=None,
        delta=1e-5,
        noise_multiplier_local=z_local,
        noise_multiplier_global=z_global,
        clip_norm_local=2.0,
    )
    return make_plan(config, DisjointSampler(steps_per_round=1), channels=BOTH, num_rounds=2, client_sizes=[61])


def what_the_public_sees(plan, has_target, rng):
    """Two steps of a client whose loss is made so that its personal prompt turns all gradients around."""
    seen, personal = [], torch.zeros(1)
    for _ in range(2):
        client = plan.mechanism(allowed=Channel.LOCAL, expected_count=1.0, rng=rng)
        server = plan.mechanism(allowed=Channel.GLOBAL, expected_count=1.0, rng=rng)
        others = torch.full((NUM_OTHERS, 1), 1.0 if personal > 1 else -1.0)
        seen.append(float(server.release(Channel.GLOBAL, server.clip(Channel.GLOBAL, 10 * others)).value))
        target = torch.full((int(has_target), 1), 100.0)  # moves the personal prompt by the clip norm, 2
        personal = personal + client.release(Channel.LOCAL, client.clip(Channel.LOCAL, target)).value
    return seen[-1]


def lower_bound(plan, confidence=0.999):
    """Epsilon that an attack on the public view alone shows (Clopper-Pearson, both error rates)."""
    rng = np.random.default_rng(0)
    with_it, without = (
        np.array([what_the_public_sees(plan, has_target, rng) for _ in range(NUM_TRIALS)])
        for has_target in (True, False)
    )
    risk = (1 - confidence) / 2
    true_positives = beta.ppf(risk, (with_it > 0).sum(), (with_it <= 0).sum() + 1)
    false_positives = beta.ppf(1 - risk, (without > 0).sum() + 1, (without <= 0).sum())
    return math.log((true_positives - plan.config.delta) / false_positives)


def test_noise_on_the_global_release_alone_does_not_protect_from_the_public():
    plan = plan_of(z_local=0.1)
    releases = GaussianReleases(num_steps=2, noise_multiplier=10.0)
    global_alone = accounting.epsilon(releases, delta=1e-5, relation="add_remove")
    shown = lower_bound(plan)
    assert global_alone < 0.6
    assert shown > 3.5, "the attack works, so counting the global release alone would be false"
    assert plan.epsilon(Audience.PUBLIC) > shown


@pytest.mark.parametrize("z_local", [3.0, 1.0])
def test_what_is_claimed_for_the_public_holds_against_the_attack(z_local):
    plan = plan_of(z_local)
    assert lower_bound(plan) < plan.epsilon(Audience.PUBLIC)
    assert plan.epsilon(Audience.PUBLIC) == plan.epsilon(Audience.PERSONAL)


def test_without_local_noise_the_public_has_no_guarantee():
    assert plan_of(z_local=0.0).epsilon(Audience.PUBLIC) == math.inf
