"""The privacy of a run's training: what is clipped to what, how much noise, and who may claim which epsilon.

The only file that joins clipping, noise, sampling and accounting. Methods and aggregation ask the plan; nothing that
derives from training data leaves a client or enters a prompt except through `Mechanism.release`.
Evaluation images are apart from it (`metrics.py`).

**The guarantee of the whole.** In every step each example of client i enters at most two sums: the client's local
sum, clipped to `clip_norm_local`, and the sum over clients, clipped to `clip_norm_global`. Each sum is released once
with Gaussian noise of `noise_multiplier` times its clip norm. Contexts, factors, residuals and optimizer states are
functions of earlier releases and of data-independent randomness, so they are post-processing. Two releases on one
batch, with multipliers z_l and z_g, are one Gaussian release with 1/z^2 = 1/z_l^2 + 1/z_g^2. Accounting composes
`Sampler.num_releases` of them, adaptively, with the sampler's amplification.

**The public is charged for the local release too**, though it never sees one: a client's upload is a gradient at a
context that earlier local releases moved. Given them, one example moves the global sum by C; without them it moves the
gradients of all other examples as well. What the public sees is a function of both releases together, and only their
composition is bounded. tests/privacy/test_public_audience.py breaks the claim that global noise alone would be enough.

**Unit "client".** A client's mean gradient is clipped as one contribution, and the noise is that of one contribution. A
client contributes in every step of every round, whatever its sampler draws, so nothing is amplified. Whatever a client
keeps between steps is its own, so the public is charged for the global release alone; a personal prompt is made from
one client's data, so it has no guarantee, and none is claimed.

A method for comparison may clip the mean gradient of a batch instead. Its sums state their worst-case sensitivity,
which `batch_clipping.py` derives, and its epsilon is the one that follows from that, whatever its noise is called by.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hushprompt import checks
from hushprompt.errors import PrivacyError
from hushprompt.privacy import accounting
from hushprompt.privacy.adaptive import (
    COUNT_SENSITIVITY,
    ClipNorms,
    count_std,
    first_norms,
    next_norm,
    sum_multiplier,
)
from hushprompt.privacy.batch_clipping import (
    BatchClipping,
    batch_sensitivity,
    clipped_means,
    published_noise_multiplier,
)
from hushprompt.privacy.clipping import ClippedSum, as_one_contribution, clipped_sum
from hushprompt.privacy.config import Audience, Channel, PrivacyConfig
from hushprompt.privacy.noise import add_gaussian, add_secure_gaussian
from hushprompt.privacy.sampling import Sampler

NO_CLIENT_LEVEL = (
    "no client-level protection: a personal prompt is made from one client's data, and whoever holds it may learn "
    "anything about that client"
)
"""Why no epsilon is claimed for personal prompts where the unit is a client."""


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """Clip norms, noise and guarantees of one training run; made by `make_plan`."""

    channels: frozenset[Channel]
    """The releases that the method makes; empty where it learns nothing from data."""
    clip_norms: dict[Channel, float]
    noise_multipliers: dict[Channel, float]
    """Noise std over sensitivity, which is the clip norm; 0 is no noise. Only for the channels that are used. Where
    clip norms are adaptive: of the sum and its count together."""
    config: PrivacyConfig
    sampler: Sampler
    num_rounds: int
    """Rounds of the client that takes part in the most."""
    client_sizes: tuple[int, ...]
    """Public number of training examples of every client."""
    batch_clipping: BatchClipping | None = None
    """Set where the mean gradient of a batch is clipped instead of each example's."""

    def sensitivity(self, channel: Channel) -> float:
        """Give what one unit can move a channel's first sum by: the clip norm, unless batches are clipped."""
        return _sensitivity(self.clip_norms[channel], channel, self.batch_clipping)

    @property
    def limit(self) -> float | None:
        """The epsilon of the budget's audience that training must not exceed: `max_epsilon`, or the target.

        None where there is no limit: no noise, noise that was given, or a target that is only what noise is called by.
        """
        if self.config.max_epsilon is not None:
            return self.config.max_epsilon
        if self.batch_clipping is not None and self.batch_clipping.calibration == "paper":
            return None
        return None if self.config.epsilon is None or math.isinf(self.config.epsilon) else self.config.epsilon

    @property
    def audiences(self) -> tuple[Audience, ...]:
        """Those who have a guarantee; the server only where no upload reaches it without noise."""
        return tuple(who for who in Audience if who is not Audience.SERVER or self.config.noise_at == "client")

    def releases(
        self, audience: Audience, num_rounds: int | None = None, client_id: int | None = None
    ) -> accounting.GaussianReleases:
        """Give what `audience` sees of one unit of a client that takes part in `num_rounds` rounds.

        Where clients add the noise, the public sees a mean of uploads and the server each one; both are accounted for
        as if only the client's own noise were there.

        Args:
            audience: who looks.
            num_rounds: None: as many as any client takes part in.
            client_id: whose sampling it is, where samplers treat clients differently; None: the worst client's.
        """
        rounds = self.num_rounds if num_rounds is None else num_rounds
        charged = self.charged_channels(audience)
        z = accounting.combine_noise_multipliers(*(self.noise_multipliers[c] for c in sorted(charged)))
        if self.is_outside(audience):
            z = 0.0
        return accounting.GaussianReleases(
            num_steps=_num_releases(self.config, self.sampler, rounds) if charged else 0,
            noise_multiplier=z,
            sampling_prob=_amplification_prob(
                self.config, self.sampler, self.client_sizes if client_id is None else [self.client_sizes[client_id]]
            ),
        )

    def charged_channels(self, audience: Audience) -> frozenset[Channel]:
        """Give the channels whose noise, together, bounds what `audience` learns of one unit; see the module docstring.

        Empty where the audience sees nothing that derives from data.
        """
        if audience is Audience.PERSONAL:
            return self.channels
        if Channel.GLOBAL not in self.channels:
            return frozenset()
        return self.channels if self.config.privacy_unit == "example" else frozenset({Channel.GLOBAL})

    def is_outside(self, audience: Audience) -> bool:
        """True where no theorem protects the unit from `audience`, however much noise there is."""
        return self.config.privacy_unit == "client" and audience is Audience.PERSONAL and Channel.LOCAL in self.channels

    def epsilon(self, audience: Audience, num_rounds: int | None = None, client_id: int | None = None) -> float:
        """Give the epsilon of `audience` after `num_rounds` rounds of a client; inf without noise, 0 if unseen."""
        return accounting.epsilon(
            self.releases(audience, num_rounds, client_id), delta=self.config.delta, relation=self._accounted_relation
        )

    @property
    def is_replay_exact(self) -> bool:
        """True where a round that runs again gives the same releases bit for bit, and so need not be charged again."""
        return self.config.noise_source == "seeded"

    def private_stream(self, seeded: np.random.Generator) -> np.random.Generator:
        """Give the stream for draws that must stay secret, such as who is in a batch: amplification rests on that.

        With secure noise it is a fresh stream that holds 256 bits of the operating system's generator, whatever the
        seed; nothing of it is ever shown, only sums under noise.
        """
        if self.config.noise_source == "seeded":
            return seeded
        return np.random.default_rng(secrets.randbits(256))

    def after(self, num_rounds: int) -> PrivacyPlan:
        """Give the plan as it stands after `num_rounds` charged rounds: what is claimed is what was spent."""
        return dataclasses.replace(self, num_rounds=num_rounds)

    def guarantees(self) -> dict[Audience, accounting.Guarantee]:
        """Give the guarantee of every audience for the whole run, with cross-checks by other accountants."""
        return {
            audience: dataclasses.replace(
                accounting.guarantee(
                    audience=str(audience),
                    releases=self.releases(audience),
                    delta=self.config.delta,
                    relation=self._accounted_relation,
                    unit=self.config.privacy_unit,
                    sampling_description=self._sampling() + self._warning,
                    why_unbounded=NO_CLIENT_LEVEL if self.is_outside(audience) else "no noise",
                ),
                neighboring_relation=self.config.neighboring_relation,
            )
            for audience in self.audiences
        }

    def first_norms(self, num_clients: int) -> ClipNorms | None:
        """Give the clip norms of the first step, 1 for a channel that is not used; None where norms are fixed."""
        if self.config.adaptive_quantile is None:
            return None
        return first_norms(
            self.clip_norms.get(Channel.GLOBAL, 1.0), self.clip_norms.get(Channel.LOCAL, 1.0), num_clients
        )

    def sum_multiplier(self, channel: Channel) -> float:
        """Give the noise std over clip norm of a channel's sum alone."""
        z = self.noise_multipliers[channel]
        return z if self.config.adaptive_quantile is None else sum_multiplier(z, self.config.adaptive_share)

    @property
    def _accounted_relation(self) -> accounting.Relation:
        """The config's; clipped batches without sampling have one sensitivity for both, which must not be doubled."""
        if self.batch_clipping is not None and _amplification_prob(self.config, self.sampler, self.client_sizes) == 1:
            return "add_remove"
        return self.config.neighboring_relation

    @property
    def _warning(self) -> str:
        """What a statement must add where batches are clipped."""
        if self.batch_clipping is None:
            return ""
        is_named = self.batch_clipping.calibration == "paper" and self.config.epsilon is not None
        nominal = f", noise by the paper's formula for a nominal epsilon of {self.config.epsilon:g}" if is_named else ""
        return f", clipping of the batch with its worst-case sensitivity{nominal}"

    def mechanism(
        self,
        *,
        allowed: Channel,
        expected_count: float,
        rng: np.random.Generator,
        num_clients: int = 1,
        clip_norms: Mapping[str, float] | None = None,
    ) -> Mechanism:
        """Give the one-step tool with which a client (LOCAL) or the server (GLOBAL) makes its release.

        Args:
            allowed: the channel on which this party may release.
            expected_count: public expected number of examples behind the sum.
            rng: noise stream of this step and party.
            num_clients: public number of clients behind the sum, the divisor where a client is clipped as one.
            clip_norms: of this step; None for those of the first.
        """
        if allowed in self.clipped_as_one:
            expected_count = float(num_clients)
        norms = {} if clip_norms is None else {c: clip_norms[c] for c in self.channels}
        return Mechanism(plan=self, allowed=allowed, expected_count=expected_count, rng=rng, clip_norms=norms)

    @property
    def clipped_as_one(self) -> frozenset[Channel]:
        """Channels on which a client's whole contribution to a step is clipped as one."""
        if self.batch_clipping is not None:
            return self.channels
        return frozenset() if self.config.privacy_unit == "example" else frozenset({Channel.GLOBAL})

    def _sampling(self) -> str:
        """Say how units take part, in the words of a statement."""
        if self.config.privacy_unit == "example":
            probs = {self.sampler.amplification_for(size) for size in self.client_sizes}
            if len(probs) == 1:
                return self.sampler.description
            worst, size = max(probs), min(self.client_sizes)
            return f"{self.sampler.description}, probability {worst:.4g} at the worst client, of {size} examples"
        return (
            f"every client contributes to each of the {self.sampler.steps_per_round} steps of a round, "
            f"no amplification claimed (inside a client: {self.sampler.description})"
        )


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """Clips for both channels and releases on one: the Gaussian mechanism of one step at one party."""

    plan: PrivacyPlan
    allowed: Channel
    """The channel on which this party may release."""
    expected_count: float
    """Public expected number of examples (or number of clients, where they are clipped as one) behind the sum; the
    divisor, whoever showed up."""
    rng: np.random.Generator
    """The noise stream of this step and party."""
    clip_norms: dict[Channel, float] = field(default_factory=dict)
    """Clip norms of this step; left out: the plan's, which are those of the first."""
    next_norms: dict[Channel, float] = field(default_factory=dict)
    """Filled by `release` where clip norms are adaptive: the norm of the next step, a function of what was released."""

    def __post_init__(self) -> None:
        """Take the plan's clip norms where none are given."""
        if not self.clip_norms:
            self.clip_norms.update(self.plan.clip_norms)

    def clip(self, channel: Channel, grads: Float[Tensor, "b *p"]) -> ClippedSum:
        """Clip per-example gradients [b, *p] to the channel's norm and add them up.

        Where the unit is a client, the mean of the rows is the one contribution that is clipped on the GLOBAL channel;
        an empty batch contributes zero.

        Raises:
            PrivacyError: the plan does not account for a release on `channel`, or not for one of single gradients.
        """
        self._check_declared(channel, clips_batches=False)
        rows = as_one_contribution(grads) if channel in self.plan.clipped_as_one else grads
        if self.plan.config.noise_source == "secure":  # rounding of the sum must be small against clipping's margin
            rows = rows.double()
        return clipped_sum(rows, self.clip_norms[channel])

    def clip_batch(self, channel: Channel, *means: Float[Tensor, "..."]) -> ClippedSum:
        """Clip the blocks of a batch's mean gradient, each to the channel's norm; for comparison only.

        Raises:
            PrivacyError: the plan does not account for a release on `channel`, or not for one of clipped batches.
        """
        self._check_declared(channel, clips_batches=True)
        return clipped_means(means, self.plan.clip_norms[channel])

    def _check_declared(self, channel: Channel, *, clips_batches: bool) -> None:
        """Raise PrivacyError unless the plan accounts for such a release."""
        if channel not in self.plan.channels:
            raise PrivacyError(
                f"The method uses the {channel} channel but declares only {sorted(self.plan.channels)}: "
                "its release would not be accounted for. Add the channel to the method's `channels`."
            )
        if clips_batches != (self.plan.batch_clipping is not None):
            declared = "clipped batches" if self.plan.batch_clipping is not None else "clipped examples"
            raise PrivacyError(f"The {channel} release is planned for {declared}, and the method makes another sum.")

    def add_penalty(self, summed: ClippedSum, grad: Float[Tensor, "*p"]) -> ClippedSum:
        """Add the gradient of a penalty on prompts to a clipped sum; the release divides it back to `grad`.

        Guarantee: the sensitivity stays, because a penalty knows an example only through earlier releases, which the
        guarantee of the run counts. The contract suite checks that of every method.

        Raises:
            PrivacyError: the unit is larger than an example: a client's prompts are its own data then.
        """
        if self.plan.config.privacy_unit != "example":
            raise PrivacyError(
                f'privacy.privacy_unit = "{self.plan.config.privacy_unit}" does not cover a penalty on personal '
                'prompts in what is shared: it would leave clients unclipped. Use privacy.privacy_unit = "example".'
            )
        return dataclasses.replace(summed, value=summed.value + self.expected_count * grad)

    def release(self, channel: Channel, summed: ClippedSum) -> Float[Tensor, "*p"]:
        """Add the channel's noise to a clipped sum and divide by the public expected count.

        Guarantee: one Gaussian mechanism with the plan's noise multiplier, whatever the batch was. Where clip norms are
        adaptive it gives the sum and, into `next_norms`, the count.

        Raises:
            PrivacyError: this party may not release on `channel`, or the sum was clipped to another norm.
        """
        if channel is not self.allowed:
            raise PrivacyError(f"This party releases on the {self.allowed} channel only, not on {channel}.")
        planned = _sensitivity(self.clip_norms[channel], channel, self.plan.batch_clipping)
        if summed.sensitivity != planned:
            raise PrivacyError(
                f"A sum of sensitivity {summed.sensitivity} came for the {channel} release, "
                f"which is planned for {planned}."
            )
        noisy = self._noisy(summed.value, self.plan.sum_multiplier(channel) * summed.sensitivity, summed.sensitivity)
        if self.plan.config.adaptive_quantile is not None:
            self.next_norms[channel] = self._adapted(channel, summed)
        released = noisy / self.expected_count
        return released.float() if self.plan.config.noise_source == "secure" else released

    def _adapted(self, channel: Channel, summed: ClippedSum) -> float:
        """Release the count of what was not clipped, and give the next clip norm."""
        config = self.plan.config
        std = count_std(self.plan.noise_multipliers[channel], config.adaptive_share)
        count = torch.tensor([summed.centered_count], dtype=torch.float64)
        assert config.adaptive_quantile is not None, "asked for only where clip norms are adaptive"
        return next_norm(
            self.clip_norms[channel],
            float(self._noisy(count, std, COUNT_SENSITIVITY)),
            self.expected_count,
            quantile=config.adaptive_quantile,
            rate=config.adaptive_rate,
        )

    def _noisy(self, value: Tensor, std: float, sensitivity: float) -> Tensor:
        """Add noise from the source that the config names."""
        if self.plan.config.noise_source == "secure":
            return add_secure_gaussian(value, std, sensitivity)
        return add_gaussian(value, std, self.rng)


def make_plan(
    config: PrivacyConfig,
    sampler: Sampler,
    *,
    channels: frozenset[Channel],
    num_rounds: int,
    client_sizes: list[int],
    batch_clipping: BatchClipping | None = None,
) -> PrivacyPlan:
    """Calibrate the noise of a run, or take it from the config, and refuse what the theorem does not cover.

    Args:
        config: the `privacy` section.
        sampler: how batches are drawn; it names its own amplification.
        channels: the releases that the method makes.
        num_rounds: rounds of the client that takes part in the most.
        client_sizes: public number of training examples of every client.
        batch_clipping: how a method clips that clips batches; None: it clips examples.

    Raises:
        PrivacyError: delta is not below 1/n, or the method makes no release that the budget's audience could see.
    """
    checks.non_negative(num_rounds=num_rounds)
    _check_delta(config, client_sizes)
    norms = {Channel.LOCAL: config.clip_norm_local, Channel.GLOBAL: config.clip_norm_global}
    if batch_clipping is not None and config.privacy_unit != "example":
        raise PrivacyError('Clipped batches are accounted for by privacy.privacy_unit = "example" alone. Set it.')
    if batch_clipping is not None and (config.noise_source == "secure" or config.adaptive_quantile is not None):
        raise PrivacyError(
            "Clipped batches are for comparison only: they have neither secure noise nor adaptive clip norms. Leave "
            "privacy.noise_source and privacy.adaptive_quantile out."
        )
    if batch_clipping is not None and batch_clipping.calibration == "paper" and config.epsilon is not None:
        batch_size = max(sampler.expected_batch_size(size) for size in client_sizes)
        multipliers = _published_noise(config, batch_clipping, channels, num_rounds, batch_size)
    else:
        multipliers = _noise_multipliers(config, sampler, channels, num_rounds, client_sizes)
    return PrivacyPlan(
        channels=channels,
        clip_norms={c: norms[c] for c in sorted(channels)},
        noise_multipliers=multipliers,
        config=config,
        sampler=sampler,
        num_rounds=num_rounds,
        client_sizes=tuple(client_sizes),
        batch_clipping=batch_clipping,
    )


def _sensitivity(clip_norm: float, channel: Channel, clipping: BatchClipping | None) -> float:
    """Give the L2 sensitivity of a channel's sum."""
    if clipping is None:
        return clip_norm
    return batch_sensitivity(clip_norm, clipping.num_local_blocks if channel is Channel.LOCAL else 1)


def _published_noise(
    config: PrivacyConfig, clipping: BatchClipping, channels: frozenset[Channel], num_rounds: int, batch_size: float
) -> dict[Channel, float]:
    """Give noise std over the true sensitivity where the std is the paper's: its z times C / B, on every block."""
    assert config.epsilon is not None
    if math.isinf(config.epsilon):
        return dict.fromkeys(sorted(channels), 0.0)
    z = published_noise_multiplier(nominal_epsilon=config.epsilon, delta=config.delta, num_rounds=num_rounds)
    return {c: z / batch_size / _sensitivity(1.0, c, clipping) for c in sorted(channels)}


def _check_delta(config: PrivacyConfig, client_sizes: list[int]) -> None:
    """Refuse a delta that allows publishing one unit outright."""
    is_example = config.privacy_unit == "example"
    num_units = max(client_sizes) if is_example else len(client_sizes)
    if config.delta * num_units >= 1:
        units = "examples of the largest client" if is_example else "number of clients"
        what = "an example" if is_example else "a client's data"
        raise PrivacyError(
            f"delta must be below 1 / ({units}) = 1 / {num_units} = {1 / num_units:.3g}, got "
            f"{config.delta:g}: a larger delta allows publishing {what} outright. Take 1e-5, or 1 / (10 n) or less."
        )


def _num_releases(config: PrivacyConfig, sampler: Sampler, num_rounds: int) -> int:
    """Give how many releases one unit can take part in; a client takes part in every step."""
    if config.privacy_unit == "example":
        return sampler.num_releases(num_rounds)
    return num_rounds * sampler.steps_per_round


def _amplification_prob(config: PrivacyConfig, sampler: Sampler, client_sizes: Iterable[int]) -> float:
    """Give the sampling probability that accounting may use for all these clients; drawing examples hides no client."""
    if config.privacy_unit == "client":
        return 1.0
    return max(sampler.amplification_for(size) for size in set(client_sizes))


def _noise_multipliers(
    config: PrivacyConfig, sampler: Sampler, channels: frozenset[Channel], num_rounds: int, client_sizes: list[int]
) -> dict[Channel, float]:
    """Split the budget: 1/z_local^2 gets `local_share`, 1/z_global^2 the rest; one channel alone gets all.

    The split does not change the epsilon of whoever is charged for both releases. Where the unit is a client, the
    global release alone is charged and gets all; the local one has no guarantee, and no noise.
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
        num_steps=_num_releases(config, sampler, num_rounds),
        sampling_prob=_amplification_prob(config, sampler, client_sizes),
        relation=config.neighboring_relation,
    )
    # 1/z_c^2 = share_c / z^2. Rounding up in the last digits keeps the combination at or above z.
    return {c: z * (1 + 1e-9) / math.sqrt(share[c]) if share[c] else 0.0 for c in sorted(channels)}
