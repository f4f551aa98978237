"""The privacy of a run's training: what is clipped to what, how much noise, and who may claim which epsilon.

Here all comes together: `release_plan.py` says what is clipped and noised, `mechanisms/` does it, `budget.py`
finds the noise of a budget, and the plan says what that proves. Methods and aggregation ask the plan; nothing that
derives from training data leaves a client or enters a prompt except through `Mechanism.release`. Evaluation images are
apart from it (`metrics.py`).

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

**Unit "group".** The groups of a client (its patients) take the place of its examples: batches draw them, sizes count
them, and what a group adds to a sum is clipped as one (`mechanisms/grouped.py`). All else is as above.

A method for comparison may clip the mean gradient of a batch instead. Its sums state their worst-case sensitivity,
which `mechanisms/batch_clipping.py` derives, and its epsilon is the one that follows from that, whatever its noise is
called by.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import dp_accounting
import numpy as np
from jaxtyping import Int64
from torch import Tensor

from hushprompt import checks
from hushprompt.errors import PrivacyError, UnfitError
from hushprompt.privacy import accounting, statements
from hushprompt.privacy.budget import amplification_prob, noise_multipliers, num_releases, published_noise
from hushprompt.privacy.config import Audience, Channel, PrivacyConfig
from hushprompt.privacy.guarantee import Guarantee, guarantee
from hushprompt.privacy.mechanisms.base import Mechanism
from hushprompt.privacy.mechanisms.grouped import GroupedMechanism
from hushprompt.privacy.mechanisms.observed import ObservedMechanism, ReleaseObserver
from hushprompt.privacy.release_plan import BatchClipping, ReleasePlan
from hushprompt.privacy.releases import GaussianReleases
from hushprompt.privacy.sampling import Sampler
from hushprompt.privacy.shares import ShareTerms
from hushprompt.registry import MECHANISMS
from hushprompt.words import counted

NO_CLIENT_LEVEL = (
    "no client-level protection: a personal prompt is made from one client's data, and whoever holds it may learn "
    "anything about that client"
)
"""Why no epsilon is claimed for personal prompts where the unit is a client."""
LARGEST_MARGIN = 0.1
"""Most that rounding may add to a sensitivity. Beyond it the answer is better arithmetic, not more noise."""


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """What a training run releases, how often, and what that proves; made by `make_plan`."""

    release_plan: ReleasePlan
    """What is clipped to which norm, and how much noise goes on each sum."""
    sampler: Sampler
    num_rounds: int
    """Rounds of the client that takes part in the most."""
    client_sizes: tuple[int, ...]
    """Public number of training examples of every client, or of groups where these are the unit."""
    beside: tuple[GaussianReleases, ...] = ()
    """Releases of other mechanisms on the same units, such as one release of statistics before the rounds. Every
    audience is charged for them, from the start."""
    client_shares: tuple[float, ...] = ()
    """Of each client, the share of the one release that it makes, which is less than 1 for one that joined after it and
    makes its last part alone; empty: all of it."""
    observer: ReleaseObserver | None = field(default=None, repr=False, compare=False)
    """Told of every release, for audits; it cannot change one."""

    @property
    def config(self) -> PrivacyConfig:
        """The `privacy` section."""
        return self.release_plan.config

    @property
    def channels(self) -> frozenset[Channel]:
        """The releases that the method makes; empty where it learns nothing from data."""
        return self.release_plan.channels

    @property
    def limit(self) -> float | None:
        """The epsilon of the budget's audience that training must not exceed: `max_epsilon`, or the target.

        None where there is no limit: no noise, noise that was given, or a target that is only what noise is called by.
        """
        if self.config.max_epsilon is not None:
            return self.config.max_epsilon
        if self.release_plan.batch_clipping is not None and self.release_plan.batch_clipping.calibration == "paper":
            return None
        return None if self.config.epsilon is None or math.isinf(self.config.epsilon) else self.config.epsilon

    @property
    def audiences(self) -> tuple[Audience, ...]:
        """Those who have a guarantee; the server only where no sum reaches it without noise."""
        is_kept_out = self.config.noise_at in ("client", "shares")
        return tuple(who for who in Audience if who is not Audience.SERVER or is_kept_out)

    def terms(self) -> ShareTerms:
        """Return who may be gone from a cohort, and who may be with the server; see `ReleasePlan.terms`."""
        return self.release_plan.terms()

    def releases(
        self, audience: Audience, num_rounds: int | None = None, client_id: int | None = None
    ) -> GaussianReleases:
        """Return what `audience` sees of one unit of a client that takes part in `num_rounds` rounds.

        Where clients add all of the noise, the public sees a mean of uploads and the server each one; both are
        accounted for as if only the client's own noise were there. Where they add shares, both see noisy sums alone,
        and as many shares as stay secret from the server and those who are with it are the planned noise.

        Args:
            audience: who looks.
            num_rounds: None: as many as any client takes part in.
            client_id: whose sampling it is, where samplers treat clients differently; None: the worst client's.
        """
        rounds = self.num_rounds if num_rounds is None else num_rounds
        charged = self.charged_channels(audience)
        z = accounting.combine_noise_multipliers(*(accounting.noise_multiplier(self.event(c)) for c in sorted(charged)))
        if self.client_shares:  # parts of share b are a Gaussian mechanism of multiplier z / sqrt(b)
            z /= math.sqrt(max(self.client_shares) if client_id is None else self.client_shares[client_id])
        if self.is_outside(audience):
            z = 0.0
        return GaussianReleases(
            num_steps=num_releases(self.config, self.sampler, rounds) if charged else 0,
            noise_multiplier=z,
            sampling_prob=amplification_prob(
                self.config, self.sampler, self.client_sizes if client_id is None else [self.client_sizes[client_id]]
            ),
        )

    def event(self, channel: Channel) -> dp_accounting.DpEvent:
        """Return the event of one release on a channel, without sampling, as its mechanism describes it."""
        return self._tool(channel, 1.0, np.random.default_rng(0), self.release_plan.clip_norms).event()

    def composed(
        self, audience: Audience, num_rounds: int | None = None, client_id: int | None = None
    ) -> tuple[GaussianReleases, ...]:
        """Return all that `audience` is charged for: `releases` of the rounds, and those beside them."""
        return (self.releases(audience, num_rounds, client_id), *self.beside)

    def charged_channels(self, audience: Audience) -> frozenset[Channel]:
        """Return the channels whose noise together bounds what `audience` learns of one unit; see the module docstring.

        Empty where the audience sees nothing that derives from data.
        """
        if audience is Audience.PERSONAL:
            return self.channels
        if Channel.GLOBAL not in self.channels:
            return frozenset()
        return frozenset({Channel.GLOBAL}) if self.config.privacy_unit == "client" else self.channels

    def is_outside(self, audience: Audience) -> bool:
        """True where no theorem protects the unit from `audience`, however much noise there is."""
        return self.config.privacy_unit == "client" and audience is Audience.PERSONAL and Channel.LOCAL in self.channels

    def epsilon(self, audience: Audience, num_rounds: int | None = None, client_id: int | None = None) -> float:
        """Return the epsilon of `audience` after `num_rounds` rounds of a client; inf without noise, 0 if unseen."""
        return accounting.epsilon(
            self.composed(audience, num_rounds, client_id), delta=self.config.delta, relation=self.accounted_relation
        )

    def after(self, num_rounds: int) -> PrivacyPlan:
        """Return the plan as it stands after `num_rounds` charged rounds: what is claimed is what was spent."""
        return dataclasses.replace(self, num_rounds=num_rounds)

    def of_client(self, client_id: int) -> PrivacyPlan:
        """Return the plan as one client's own statements claim it: where clients make different shares, with its."""
        if not self.client_shares:
            return self
        return dataclasses.replace(self, client_shares=(self.client_shares[client_id],) * len(self.client_shares))

    def guarantees(self) -> dict[Audience, Guarantee]:
        """Return the guarantee of every audience for the whole run, with cross-checks by other accountants."""
        return {
            audience: dataclasses.replace(
                guarantee(
                    audience=str(audience),
                    releases=self.releases(audience),
                    delta=self.config.delta,
                    relation=self.accounted_relation,
                    unit=self.config.privacy_unit,
                    sampling_description=self._sampling() + self._warning,
                    why_unbounded=NO_CLIENT_LEVEL if self.is_outside(audience) else "no noise",
                    beside=self.beside,
                ),
                neighboring_relation=self.config.neighboring_relation,
                group_word=self.config.group_word if self.config.privacy_unit == "group" else "",
                noise_source=self.release_plan.noise_source,
                terms=self.terms() if audience is Audience.SERVER and self.release_plan.has_shares else None,
            )
            for audience in self.audiences
        }

    @property
    def accounted_relation(self) -> accounting.Relation:
        """The config's; clipped batches without sampling have one sensitivity for both, which must not be doubled."""
        if self.release_plan.batch_clipping is None:
            return self.config.neighboring_relation
        is_sampled = amplification_prob(self.config, self.sampler, self.client_sizes) < 1
        return self.config.neighboring_relation if is_sampled else "add_remove"

    @property
    def _warning(self) -> str:
        """What a statement must add where batches are clipped."""
        if self.release_plan.batch_clipping is None:
            return ""
        is_named = self.release_plan.batch_clipping.calibration == "paper" and self.config.epsilon is not None
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
        step: int = 0,
        groups: Int64[Tensor, " b"] | None = None,
    ) -> Mechanism:
        """Return the one-step tool with which a client (LOCAL) or the server (GLOBAL) makes its release.

        Args:
            allowed: the channel on which this party may release.
            expected_count: public expected number of examples behind the sum, or of groups where these are the unit.
            rng: noise stream of this step and party.
            num_clients: public number of clients behind the sum, the divisor where a client is clipped as one.
            clip_norms: of this step; None for those of the first.
            step: in its round, from 0.
            groups: number of the group of each row of the batch, where these are the unit; without it such a party can
                release what others clipped, and clips nothing.
        """
        plan = self.release_plan
        norms = plan.clip_norms if clip_norms is None else {c: clip_norms[c] for c in plan.channels}
        count = float(num_clients) if allowed in plan.clipped_as_one else expected_count
        mechanism = self._tool(allowed, count, rng, norms, step)
        if self.observer is not None:
            mechanism = ObservedMechanism(mechanism, self.observer)
        return GroupedMechanism(mechanism, groups) if self.config.privacy_unit == "group" else mechanism

    def _tool(
        self,
        allowed: Channel,
        expected_count: float,
        rng: np.random.Generator,
        clip_norms: Mapping[Channel, float],
        step: int = 0,
    ) -> Mechanism:
        """Return the registered mechanism for one step."""
        plan = self.release_plan
        mechanism: Mechanism = MECHANISMS.get(plan.mechanism)(
            plan=plan, allowed=allowed, expected_count=expected_count, rng=rng, clip_norms=clip_norms, step=step
        )
        return mechanism

    def _sampling(self) -> str:
        """Say how units take part, in the words of a statement."""
        if self.config.privacy_unit != "client":
            described = statements.in_units(self.sampler.description, self.config.unit_word)
            probs = {self.sampler.amplification_for(size) for size in self.client_sizes}
            if len(probs) == 1:
                return described
            least = counted(min(self.client_sizes), self.config.unit_word)
            return f"{described}, probability {max(probs):.4g} at the worst client, of {least}"
        return (
            f"every client contributes to each of the {self.sampler.steps_per_round} steps of a round, "
            f"no amplification claimed (inside a client: {self.sampler.description})"
        )


def make_plan(
    config: PrivacyConfig,
    sampler: Sampler,
    *,
    channels: frozenset[Channel],
    num_rounds: int,
    client_sizes: list[int],
    batch_clipping: BatchClipping | None = None,
    beside: tuple[GaussianReleases, ...] = (),
    mechanism: str | None = None,
    parts: tuple[float, ...] = (),
    cohort_size: int | None = None,
) -> PrivacyPlan:
    """Calibrate the noise of a run, or take it from the config, and refuse what the theorem does not cover.

    Args:
        config: the `privacy` section.
        sampler: how batches are drawn; it names its own amplification.
        channels: the releases that the method makes.
        num_rounds: rounds of the client that takes part in the most.
        client_sizes: public number of training examples of every client, or of groups where these are the unit.
        batch_clipping: how a method clips that clips batches; None: it clips examples.
        beside: releases of other mechanisms on the same units, of fixed noise; the budget is for all of them together.
        mechanism: name in MECHANISMS of what clips and releases; None: "gaussian", or "batch_clipping" where a method
            clips batches.
        parts: shares of the one release that the steps of a round make; see `ReleasePlan`.
        cohort_size: clients of a round; None: all.

    Raises:
        PrivacyError: delta is not below 1/n, the method makes no release that the budget's audience could see, or a
            cohort is too small for noise shares.
        UnfitError: a release in parts, with settings that it cannot have.
    """
    checks.non_negative(num_rounds=num_rounds)
    _check_delta(config, client_sizes)
    if config.noise_source == "auto":  # nobody said what the data are
        config = dataclasses.replace(config, noise_source="secure")
    if config.noise_at == "auto":  # nobody said that clients will add it
        config = dataclasses.replace(config, noise_at="server")
    norms = {Channel.LOCAL: config.clip_norm_local, Channel.GLOBAL: config.clip_norm_global}
    if batch_clipping is not None:
        _check_clipped_batches(config, beside)
    if parts:
        check_parts(config, parts)
    if batch_clipping is not None and batch_clipping.calibration == "paper" and config.epsilon is not None:
        batch_size = max(sampler.expected_batch_size(size) for size in client_sizes)
        multipliers = published_noise(config, batch_clipping, channels, num_rounds, batch_size)
    else:
        multipliers = noise_multipliers(config, sampler, channels, num_rounds, client_sizes, beside)
    # Rows of sums of classes are made in float64, each apart from all others.
    is_rounded = config.privacy_unit != "client" and batch_clipping is None and not parts
    release_plan = ReleasePlan(
        channels=channels,
        clip_norms={c: norms[c] for c in sorted(channels)},
        noise_multipliers=multipliers,
        config=config,
        mechanism=mechanism or ("gaussian" if batch_clipping is None else "batch_clipping"),
        batch_clipping=batch_clipping,
        parts=parts,
        cohort_size=len(client_sizes) if cohort_size is None else cohort_size,
        num_rounded=max(client_sizes) * config.examples_per_unit if is_rounded else 0,
    )
    _check_rounding(release_plan)
    if release_plan.has_shares:
        release_plan.terms()
    plan = PrivacyPlan(
        release_plan=release_plan,
        sampler=sampler,
        num_rounds=num_rounds,
        client_sizes=tuple(client_sizes),
        beside=beside,
    )
    _check_events(plan)
    return plan


def _check_events(plan: PrivacyPlan) -> None:
    """Refuse a mechanism that adds less noise than is planned, or whose shares would be less than it says."""
    for channel, planned in plan.release_plan.noise_multipliers.items():
        made = accounting.noise_multiplier(plan.event(channel))
        if made < planned:
            raise PrivacyError(
                f"The mechanism {plan.release_plan.mechanism!r} has a noise multiplier of {made:g} on the {channel} "
                f"channel, and {planned:g} is planned. Its event must add at least the planned noise."
            )
        if made > planned and channel is Channel.GLOBAL and plan.release_plan.has_shares:
            raise PrivacyError(
                f"The mechanism {plan.release_plan.mechanism!r} says more noise than is planned ({made:g} instead of "
                f'{planned:g}), and noise shares are the planned noise. Use privacy.noise_at = "server" or "client".'
            )


def _check_clipped_batches(config: PrivacyConfig, beside: tuple[GaussianReleases, ...]) -> None:
    """Refuse what clipped batches, which are for comparison only, are not accounted for."""
    if config.privacy_unit != "example" or beside:
        raise PrivacyError(
            'Clipped batches are accounted for by privacy.privacy_unit = "example" alone, and beside no other release. '
            "Set it."
        )
    if config.noise_source == "secure" or config.adaptive_quantile is not None:
        raise PrivacyError(
            "Clipped batches are for comparison only, in simulations: they have neither secure noise nor adaptive clip "
            'norms. Set privacy.noise_source = "seeded" and leave privacy.adaptive_quantile out, or use another method.'
        )
    if config.noise_at == "shares":
        raise PrivacyError(
            'Clipped batches are for comparison only, and have no noise shares. Set privacy.noise_at = "server", or '
            "use another method."
        )


def check_parts(config: PrivacyConfig, parts: tuple[float, ...]) -> None:
    """Refuse what the theorem of one release in parts does not cover.

    Raises:
        PrivacyError: the parts are more than one release.
        UnfitError: the settings are for methods with rounds.
    """
    if min(parts) <= 0 or sum(parts) > 1 + 1e-12:
        raise PrivacyError(f"The parts of a release must be above 0 and sum to at most 1, got {parts}.")
    if config.privacy_unit == "client" or config.adaptive_quantile is not None:
        raise UnfitError(
            "A release of class statistics protects examples or groups and has fixed clip norms. Set "
            'privacy.privacy_unit = "example" and leave privacy.adaptive_quantile out.'
        )


def _check_rounding(plan: ReleasePlan) -> None:
    """Refuse so many examples that rounding alone would matter."""
    if plan.channels and plan.rounding_margin > LARGEST_MARGIN:
        raise PrivacyError(
            f"The largest client has {_most_rows(plan)}, and privacy.rounding = {plan.config.rounding:g} for "
            f"each would make noise larger by {plan.rounding_margin:.0%}; {LARGEST_MARGIN:.0%} is the most. Set "
            f"privacy.rounding to at most {LARGEST_MARGIN / plan.num_rounded:.1g} (training is refused if the model "
            f"rounds by more), {'a smaller privacy.max_group_examples, ' * (plan.config.privacy_unit == 'group')}or "
            "divide the client."
        )


def _most_rows(plan: ReleasePlan) -> str:
    """Say how many rows of the largest client rounding may move."""
    if plan.config.privacy_unit != "group":
        return f"{plan.num_rounded} examples"
    groups = plan.num_rounded // plan.config.max_group_examples
    return f"{groups} groups with {plan.config.max_group_examples} examples in a step at most"


def _check_delta(config: PrivacyConfig, client_sizes: list[int]) -> None:
    """Refuse a delta that allows publishing one unit outright."""
    is_client = config.privacy_unit == "client"
    num_units = len(client_sizes) if is_client else max(client_sizes)
    if config.delta * num_units >= 1:
        unit = "group" if config.privacy_unit == "group" else "example"
        units = "number of clients" if is_client else f"{unit}s of the largest client"
        what = "a client's data" if is_client else "all of a group" if unit == "group" else "an example"
        raise PrivacyError(
            f"delta must be below 1 / ({units}) = 1 / {num_units} = {1 / num_units:.3g}, got "
            f"{config.delta:g}: a larger delta allows publishing {what} outright. Take 1e-5, or 1 / (10 n) or less."
        )
