"""Whether dp_accounting itself confirms an epsilon, whatever showed it in the first place."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import dp_accounting
from dp_accounting import pld, rdp
from dp_accounting.pld.privacy_loss_mechanism import GaussianPrivacyLoss
from scipy.special import expit

from hushprompt.privacy.accounting import compose
from hushprompt.privacy.losses import grid, is_proven
from hushprompt.privacy.releases import GaussianReleases
from hushprompt.privacy.renyi import RenyiBound, quiet

SLACK, GRID = 1e-2, 2e-3
"""What discretization explains between a claim and dp_accounting's own bound: of the claim, and in epsilon."""


def is_confirmed(epsilon: float, parts: Sequence[GaussianReleases], delta: float, relation: str) -> bool:
    """Ask dp_accounting whether releases are (epsilon, delta)-DP, up to its discretization.

    Its Renyi accountant, or its privacy loss distributions, must show a bound. Under replace-one neighbors unsampled
    sums have twice the sensitivity, and group privacy is the other way to a bound (`privacy/accounting.py`).
    """
    released, claim = compose(parts), epsilon * (1 + SLACK) + GRID
    if not released:
        return True
    if relation == "add_remove":
        return _is_bounded(released, claim, delta)
    doubled = tuple(
        dataclasses.replace(p, noise_multiplier=p.noise_multiplier / 2, sampling_prob=1.0) for p in released
    )
    return _is_bounded(doubled, claim, delta) or _is_bounded(released, claim / 2, delta * float(expit(-claim / 2)))


def _is_bounded(parts: Sequence[GaussianReleases], epsilon: float, delta: float) -> bool:
    """Ask the same of add/remove neighbors.

    Losses that are composed numerically are asked only where rounding leaves them right (`privacy/losses.py`). The
    other bounds hold at any delta: of the same releases without sampling, exactly, and Renyi's, at more orders too.
    """
    if not delta:  # it was too small for a number
        return False
    z = 1 / math.sqrt(sum(part.num_steps / part.noise_multiplier**2 for part in parts))
    is_enough = bool(GaussianPrivacyLoss(z).get_delta_for_epsilon(epsilon) <= delta)
    if is_enough or all(part.sampling_prob == 1 for part in parts):
        return is_enough
    events = [
        one if part.sampling_prob == 1 else dp_accounting.PoissonSampledDpEvent(part.sampling_prob, one)
        for part, one in ((part, dp_accounting.GaussianDpEvent(part.noise_multiplier)) for part in parts)
    ]
    whole = dp_accounting.ComposedDpEvent(
        [dp_accounting.SelfComposedDpEvent(one, part.num_steps) for one, part in zip(events, parts, strict=True)]
    )
    with quiet():
        if rdp.RdpAccountant().compose(whole).get_epsilon(delta) <= epsilon:
            return True
    if not is_proven(parts, delta):
        return RenyiBound(parts, whole).get_epsilon(delta) <= epsilon
    return bool(pld.PLDAccountant(value_discretization_interval=grid(parts)).compose(whole).get_delta(epsilon) <= delta)
