"""From a budget to the noise of every release: one multiplier for all, and each channel's share of it."""

from __future__ import annotations

import math
from collections.abc import Iterable

from hushprompt import checks
from hushprompt.errors import PrivacyError
from hushprompt.privacy import accounting
from hushprompt.privacy.config import Audience, Channel, PrivacyConfig
from hushprompt.privacy.release_plan import BatchClipping, batch_sensitivity
from hushprompt.privacy.releases import GaussianReleases
from hushprompt.privacy.sampling import Sampler


def noise_multipliers(
    config: PrivacyConfig,
    sampler: Sampler,
    channels: frozenset[Channel],
    num_rounds: int,
    client_sizes: list[int],
    beside: tuple[GaussianReleases, ...] = (),
) -> dict[Channel, float]:
    """Split the budget: 1/z_local^2 gets `local_share`, 1/z_global^2 the rest; one channel alone gets all.

    The split does not change the epsilon of whoever is charged for both releases. Where the unit is a client, the
    global release alone is charged and gets all; the local one has no guarantee, and no noise. What the releases
    `beside` cost is taken off before.
    """
    if config.epsilon is None:
        explicit = {Channel.LOCAL: config.noise_multiplier_local, Channel.GLOBAL: config.noise_multiplier_global}
        return {c: z for c in sorted(channels) if (z := explicit[c]) is not None}
    if not channels or num_rounds == 0 or math.isinf(config.epsilon):
        return dict.fromkeys(sorted(channels), 0.0)
    if config.audience is not Audience.PERSONAL and Channel.GLOBAL not in channels:
        raise PrivacyError(
            f'privacy.audience = "{config.audience}" sees no release of this method, which trains personal prompts '
            'only. Use privacy.audience = "personal".'
        )
    if config.privacy_unit == "client" and config.audience is Audience.PERSONAL and Channel.LOCAL in channels:
        raise PrivacyError(
            'privacy.privacy_unit = "client" protects the global prompt alone: a personal prompt is made from one '
            "client's data, and no noise that leaves it useful hides that client. "
            'Use privacy.audience = "public", or privacy.privacy_unit = "example".'
        )
    share = {Channel.LOCAL: config.local_share, Channel.GLOBAL: 1 - config.local_share}
    if len(channels) == 1:
        share = dict.fromkeys(channels, 1.0)
    elif config.privacy_unit == "client":
        share = {Channel.LOCAL: 0.0, Channel.GLOBAL: 1.0}
    z = accounting.calibrate(
        target_epsilon=config.epsilon,
        delta=config.delta,
        num_steps=num_releases(config, sampler, num_rounds),
        sampling_prob=amplification_prob(config, sampler, client_sizes),
        relation=config.neighboring_relation,
        beside=beside,
    )
    # 1/z_c^2 = share_c / z^2. Rounding up in the last digits keeps the combination at or above z.
    return {c: z * (1 + 1e-9) / math.sqrt(share[c]) if share[c] else 0.0 for c in sorted(channels)}


def start_multiplier(config: PrivacyConfig, share: float) -> float:
    """Return the noise multiplier of one release of every example with `share` of the budget: z / sqrt(share).

    Here z is the multiplier that would spend the whole budget at once. The rounds that follow are calibrated beside it.

    Raises:
        PrivacyError: there is no budget to share.
    """
    if config.epsilon is None:
        raise PrivacyError(
            'method.start = "class_statistics" takes a share of a budget, and here the noise itself is given. Set '
            "privacy.epsilon instead of noise multipliers."
        )
    whole = accounting.calibrate(
        target_epsilon=config.epsilon,
        delta=config.delta,
        num_steps=1,
        sampling_prob=1.0,
        relation=config.neighboring_relation,
    )
    return whole / math.sqrt(share)


def published_noise(
    config: PrivacyConfig, clipping: BatchClipping, channels: frozenset[Channel], num_rounds: int, batch_size: float
) -> dict[Channel, float]:
    """Return noise std over the true sensitivity where the std is the paper's: its z times C / B, on every block."""
    assert config.epsilon is not None
    if math.isinf(config.epsilon):
        return dict.fromkeys(sorted(channels), 0.0)
    z = published_noise_multiplier(nominal_epsilon=config.epsilon, delta=config.delta, num_rounds=num_rounds)
    num_blocks = {Channel.LOCAL: clipping.num_local_blocks, Channel.GLOBAL: 1}
    return {c: z / batch_size / batch_sensitivity(1.0, num_blocks[c]) for c in sorted(channels)}


def published_noise_multiplier(*, nominal_epsilon: float, delta: float, num_rounds: int) -> float:
    """Return the noise std over assumed sensitivity that the paper's formula sets: sqrt(T ln(1 / delta)) / epsilon.

    Source: Tran et al. 2025 (arXiv:2501.13904) and its released code, with T rounds and no sampling.

    >>> round(published_noise_multiplier(nominal_epsilon=0.4, delta=1e-5, num_rounds=100), 1)
    84.8
    """
    checks.positive(nominal_epsilon=nominal_epsilon)
    return math.sqrt(num_rounds * math.log(1 / delta)) / nominal_epsilon


def num_releases(config: PrivacyConfig, sampler: Sampler, num_rounds: int) -> int:
    """Return how many releases one unit can take part in; a client takes part in every step."""
    if config.privacy_unit == "client":
        return num_rounds * sampler.steps_per_round
    return sampler.num_releases(num_rounds)


def amplification_prob(config: PrivacyConfig, sampler: Sampler, client_sizes: Iterable[int]) -> float:
    """Return the sampling probability that accounting may use for all these clients; 1 for whole clients."""
    if config.privacy_unit == "client":
        return 1.0
    return max(sampler.amplification_for(size) for size in set(client_sizes))
