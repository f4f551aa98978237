"""What a budget costs in noise, and what noise proves, before there is a run: the plan of a training that is described.

It is the plan that a run with these settings makes, so the answers are those of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from hushprompt import checks
from hushprompt.errors import PrivacyError
from hushprompt.privacy.accounting import Relation
from hushprompt.privacy.config import Audience, Channel, PrivacyConfig
from hushprompt.privacy.plan import PrivacyPlan, make_plan
from hushprompt.privacy.sampling import DisjointSampler, PoissonSampler, Sampler

BOTH = frozenset(Channel)


def plan_training(
    *,
    rounds: int,
    epsilon: float | None = None,
    noise_multipliers: Mapping[str, float] | float | None = None,
    delta: float = 1e-5,
    sampling_prob: float | None = None,
    steps_per_round: int = 1,
    channels: frozenset[Channel] = BOTH,
    audience: str = Audience.PERSONAL,
    noise_at: Literal["server", "client", "shares"] = "server",
    local_share: float = 0.5,
    relation: Relation = "add_remove",
    unit: Literal["example", "group", "client"] = "example",
    clients: int = 1,
    max_colluding: int = 1,
    max_dropouts: int = 0,
    rescue: bool = False,
) -> PrivacyPlan:
    """Return the plan of a training: its `release_plan.noise_multipliers`, and `guarantees()` for every audience.

    Args:
        rounds: communication rounds T.
        epsilon: target of `audience`; inf needs no noise. Either this or `noise_multipliers`.
        noise_multipliers: noise std over clip norm, by channel ("local", "global") or one number for all.
        delta: in (0, 1).
        sampling_prob: probability q with which an example joins a batch (Poisson); None: each round's examples are
            dealt to disjoint batches, and no amplification is claimed.
        steps_per_round: steps, of one batch each, in a round.
        channels: the releases that the method makes; `METHODS.get(name).channels`.
        audience: whom the target is for: "personal", "public" or "server".
        noise_at: where the global noise is added: "server", "client" or "shares".
        local_share: share of the budget (of 1/z^2) for the local release.
        relation: what neighboring data sets differ by.
        unit: who is protected.
        clients: number of clients; where the unit is a client, delta must lie below 1 / this. Shares need three.
        max_colluding: with shares, clients that may be with the server.
        max_dropouts: with shares, clients that may be gone from a step.
        rescue: with shares, whether clients may be gone in a step.

    Raises:
        PrivacyError: both or neither of epsilon and noise are given, a channel has no noise, or no theorem covers it.
        ConfigError: a value is out of range.

    >>> plan = plan_training(epsilon=0.4, rounds=100, channels=frozenset({Channel.GLOBAL}), audience="public")
    >>> round(plan.release_plan.noise_multipliers[Channel.GLOBAL], 1)
    86.3
    >>> plan_training(noise_multipliers=86.3, rounds=100).guarantees()[Audience.PUBLIC].epsilon > 0.4  # of two releases
    True
    """
    if (epsilon is None) == (noise_multipliers is None):
        raise PrivacyError("Give either epsilon, and get the noise, or the noise multipliers, and get epsilon.")
    checks.positive(clients=clients)
    checks.one_of([str(who) for who in Audience], audience=audience)
    checks.one_of(("server", "client", "shares"), noise_at=noise_at)
    checks.one_of(("add_remove", "replace_one"), relation=relation)
    checks.one_of(("example", "group", "client"), unit=unit)
    noise = _by_channel(noise_multipliers, channels)
    config = PrivacyConfig(
        epsilon=epsilon,
        delta=delta,
        audience=Audience(audience),
        noise_at=noise_at,
        local_share=local_share,
        noise_multiplier_local=noise.get(Channel.LOCAL),
        noise_multiplier_global=noise.get(Channel.GLOBAL),
        neighboring_relation=relation,
        privacy_unit=unit,
        max_colluding=max_colluding,
        max_dropouts=max_dropouts,
        rescue=rescue,
    )
    sampler: Sampler = (
        DisjointSampler(steps_per_round=steps_per_round)
        if sampling_prob is None
        else PoissonSampler(sampling_prob=sampling_prob, steps_per_round=steps_per_round)
    )
    return make_plan(config, sampler, channels=channels, num_rounds=rounds, client_sizes=[1] * clients)


def _by_channel(
    noise_multipliers: Mapping[str, float] | float | None, channels: frozenset[Channel]
) -> dict[Channel, float]:
    """Return a noise multiplier for every channel, 0 for one that is not used; empty where none are given."""
    if noise_multipliers is None:
        return {}
    if not isinstance(noise_multipliers, Mapping):
        return dict.fromkeys(Channel, float(noise_multipliers))
    if unknown := set(noise_multipliers) - {str(channel) for channel in Channel}:
        raise PrivacyError(f"Noise is given for {sorted(unknown)}; the channels are 'local' and 'global'.")
    if missing := sorted(str(channel) for channel in channels if str(channel) not in noise_multipliers):
        raise PrivacyError(f"The method releases on {sorted(map(str, channels))}; give the noise of {missing} too.")
    return {channel: float(noise_multipliers.get(str(channel), 0.0)) for channel in Channel}
