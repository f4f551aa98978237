"""Recording for an auditor while a federation trains: releases, and what each example would have added to them.

The loop and the methods know nothing of it. A watched method and a watched plan stand in for an arm's own, do the same,
and tell the watch. The audited client is known by its personal state, an object of its own at every step.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from hushprompt.audits.likelihood import drifts, log_likelihood_ratios, over_steps, without
from hushprompt.methods.base import Batch, Method, Personal, Shared, StepInfo, Upload
from hushprompt.privacy.clipping import ClippedSum, clip_factors
from hushprompt.privacy.config import Audience, Channel
from hushprompt.privacy.mechanisms.base import ClassRows, Mechanism, Release
from hushprompt.privacy.mechanisms.grouped import GroupedMechanism
from hushprompt.privacy.mechanisms.observed import WrappedMechanism
from hushprompt.privacy.release_plan import ReleasePlan
from hushprompt.runs.arm import Arm

ABSENT = -1
"""Label of an example that is left out."""
FORWARDED = ("title", "channels", "feature_kind", "init", "begin_round", "public_file", "personal_file", "logits")
"""What a watched method takes over from `Method` as it is."""


@dataclass(frozen=True)
class Transcript:
    """Global contexts and the gradients that were released there: one entry for each release."""

    contexts: list[Tensor] = field(default_factory=list)
    """[t, e] or [c, t, e] before the releases."""
    releases: list[Tensor] = field(default_factory=list)
    """Released mean gradients of the same shapes."""


@dataclass(frozen=True)
class Probe:
    """The audited client's examples, whose part in every release is to be judged."""

    batch: Batch
    """All n of them, with the labels that they are trained with."""
    drawn: Float[Tensor, " n"]
    """[n] probability that each is in a batch, as far as the auditor knows."""
    sampling_prob: float
    """Probability that an example that is there is in a batch."""
    is_candidate: Bool[np.ndarray, " n"]
    """[n] whose coin the auditor guesses."""
    groups: Int64[Tensor, " m"] | None = None
    """Number of the group of each of the batch's m examples, where groups are the unit; n is then the number of groups,
    and what is said above of an example is said of a group."""


@dataclass
class WatchedStep:
    """One step of the audited client: sums in clip norms, and what each of its examples would add to them."""

    plan: ReleasePlan
    drawn: Tensor
    """[n] as in `Probe`."""
    known: dict[Channel, Tensor]
    """[n, p] clipped gradients where the client stands, which the holder of its prompt knows."""
    guessed: Tensor | None
    """[n, p] on the GLOBAL channel, where one stands who knows the client's public start alone."""
    local: Tensor | None = None
    """[p] the client's local release."""
    own: Tensor | None = None
    """[p] its global release, where clients add the noise."""
    total: Tensor | None = None
    """[p] the sum over all clients."""
    at_server: Tensor | None = None
    """[p] the same without what clients on the server's side added, where clients add shares of the noise."""

    def ratios(self, channel: Channel, released: Tensor, contributions: Tensor) -> Tensor:
        """Return the log-likelihood ratios [n] of a release, by the entries that an example of the client can move."""
        moved = (contributions != 0).any(dim=0)
        noise_std = self.plan.sum_multiplier(channel)
        return log_likelihood_ratios(released[moved], contributions[:, moved], self.drawn, noise_std)


class TrainingObserver:
    """Is told what happens in a training by a watched arm; does nothing about it by itself."""

    def owns(self, personal: Personal) -> bool:
        """Whether a state is a client's whose steps are to be told."""
        return False

    def begin_step(
        self, method: Any, model: Any, shared: Shared, mechanism: Mechanism, rng: np.random.Generator
    ) -> None:
        """A watched client begins a step.

        Args:
            method: unwatched.
            model: what it trains for.
            shared: the server's state.
            mechanism: of the client and step.
            rng: of the step, which is public; it must not be moved.
        """

    def end_step(self, upload: Upload, personal: Personal) -> None:
        """A watched client has uploaded and has its next state."""

    def on_release(self, mechanism: Mechanism, channel: Channel, summed: ClippedSum | None, released: Tensor) -> None:
        """A client or the server has released, or the server has opened a sum of shares, which it does not know."""

    def on_share(
        self, mechanism: Mechanism, summed: ClippedSum, shared: Int64[np.ndarray, " l"], num_participants: int
    ) -> None:
        """A client has put its sum on the grid, with its share of the noise."""

    def on_server_step(self, method: Any, shared: Shared, released: Tensor) -> None:
        """The shared state, or a client's copy of it, is about to be stepped."""

    def on_round(self, method: Any, before: Shared, after: Shared) -> None:
        """A round is over, with this shared state."""


@dataclass(frozen=True)
class _Colluding:
    """What clients on the server's side know of one sum, in clip norms."""

    number: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    noise: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def with_one(self, own: Tensor, noise: Tensor) -> _Colluding:
        """Return what they know with one more of them."""
        return _Colluding(self.number + 1, self.sums + own, self.noise + noise)


class Watch(TrainingObserver):
    """Records what happens to one client of one training."""

    def __init__(self, personal: Personal, probe: Probe | None, *, is_public: bool, knows_others: bool = False) -> None:
        """Begin.

        Args:
            personal: the audited client's state; nobody else has the same object.
            probe: its examples, to be judged step by step; None: transcripts alone.
            is_public: whether every server step is seen by all; false where clients step copies of their own.
            knows_others: whether the auditor knows what all other clients add: the worst that the claim allows for.
        """
        self.public, self.uploads, self.ratios = Transcript(), Transcript(), dict[Audience, list[Tensor]]()
        self._personal, self._start, self._probe, self._is_public = personal, personal, probe, is_public
        self._knows_others, self._summed = knows_others, torch.zeros((), dtype=torch.float64)
        self._step: WatchedStep | None = None
        self._is_turn = False
        self._upload: ClippedSum | None = None
        self._context: Tensor | None = None
        self._count, self._norm = 0.0, 1.0
        self._colluding = _Colluding()
        self._earlier: dict[Audience, list[Tensor]] = {audience: [] for audience in Audience}

    def scores(self, audience: Audience) -> Float[np.ndarray, " m"] | None:
        """Return each candidate's log-likelihood ratio over all that an audience saw; None where it saw no release."""
        self._close()
        if self._probe is None or audience not in self.ratios:
            return None
        return over_steps(self.ratios[audience], self._probe.sampling_prob)[self._probe.is_candidate]

    def owns(self, personal: Personal) -> bool:
        """Whether a state is the audited client's."""
        return personal is self._personal

    def begin_step(
        self, method: Any, model: Any, shared: Shared, mechanism: Mechanism, rng: np.random.Generator
    ) -> None:
        """See what each of the client's examples would add."""
        self._close()
        self._is_turn, self._context = True, shared_context(method, shared)
        if self._probe is None or mechanism.plan.batch_clipping is not None:
            return
        batch, groups = self._probe.batch, self._probe.groups

        def clipped(personal: Personal) -> dict[Channel, Tensor]:
            inner = mechanism.inner if isinstance(mechanism, GroupedMechanism) else mechanism
            asking = ClippedRows(inner)
            whole = asking if groups is None else GroupedMechanism(asking, groups)
            method.client_step(model, shared, personal, batch, whole, copy.deepcopy(rng))
            return {channel: in_groups(rows, groups) for channel, rows in asking.rows.items()}

        known = clipped(self._personal)
        is_same = self._personal is self._start or Channel.LOCAL not in known
        guessed = (known if is_same else clipped(self._start)).get(Channel.GLOBAL)
        self._step = WatchedStep(mechanism.plan, self._probe.drawn, known, guessed)

    def end_step(self, upload: Upload, personal: Personal) -> None:
        """Record the client's upload and its next state."""
        self._is_turn, self._upload, self._personal = False, upload.shared_grad, personal

    def on_release(self, mechanism: Mechanism, channel: Channel, summed: ClippedSum | None, released: Tensor) -> None:
        """Record a release of any client, or of the server."""
        norm = mechanism.clip_norms[channel]
        in_norms = released.flatten().double() * mechanism.expected_count / norm
        if channel is Channel.LOCAL and self._is_turn and self._step is not None:
            self._step.local = in_norms
        if channel is Channel.GLOBAL:
            self._count, self._norm = self._count + mechanism.expected_count, norm
            if summed is None:
                return
            self._summed = self._summed + summed.value.flatten().double() / norm
            if summed is self._upload:
                if self._context is not None:
                    self.uploads.contexts.append(self._context)
                    self.uploads.releases.append(released)
                if self._step is not None:
                    self._step.own = in_norms

    def on_share(
        self, mechanism: Mechanism, summed: ClippedSum, shared: Int64[np.ndarray, " l"], num_participants: int
    ) -> None:
        """Record what a client adds to the sum over all; the first others of a step are on the server's side."""
        norm, size = mechanism.clip_norms[Channel.GLOBAL], summed.value.numel()
        own = summed.value.flatten().double() / norm
        self._summed = self._summed + own
        if summed is not self._upload and self._colluding.number < mechanism.plan.terms().max_colluding:
            grid = mechanism.plan.share_grid(norm, mechanism.step, size, num_participants)
            noisy = torch.from_numpy(grid.decode(shared[:size], num_participants)) / norm
            self._colluding = self._colluding.with_one(own, noisy - own)

    def on_server_step(self, method: Any, shared: Shared, released: Tensor) -> None:
        """Record what moves the shared state."""
        context = shared_context(method, shared)
        if self._is_public and context is not None:
            self.public.contexts.append(context)
            self.public.releases.append(released)
        if self._is_public and self._step is not None:
            self._step.total = released.flatten().double() * self._count / self._norm
            if self._knows_others and self._upload is not None:
                self._step.total += self._upload.value.flatten().double() / self._norm - self._summed
            if self._colluding.number:
                known = self._colluding.noise if self._knows_others else self._colluding.noise + self._colluding.sums
                self._step.at_server = self._step.total - known
            self._close()
        self._count, self._summed, self._colluding = 0.0, torch.zeros((), dtype=torch.float64), _Colluding()

    def on_round(self, method: Any, before: Shared, after: Shared) -> None:
        """Note what the round moved, which is all that is seen of clients that step copies of their own."""
        start, end = shared_context(method, before), shared_context(method, after)
        if not self._is_public and start is not None and end is not None:
            self.public.contexts.append(start)
            self.public.releases.append(start - end)  # what the round moved, against the gradients

    def _close(self) -> None:
        """Judge the step that is over by what each audience saw of it."""
        step, self._step = self._step, None
        if step is None:
            return
        seen = dict[Audience, Tensor]()
        if step.own is not None and step.guessed is not None:
            seen[Audience.SERVER] = step.ratios(Channel.GLOBAL, step.own, step.guessed)
        if step.at_server is not None and step.guessed is not None:
            seen[Audience.SERVER] = self._in_total(Audience.SERVER, step, step.at_server, step.guessed)
        if step.total is not None and step.guessed is not None:
            seen[Audience.PUBLIC] = self._in_total(Audience.PUBLIC, step, step.total, step.guessed)
        if step.local is not None:
            seen[Audience.PERSONAL] = step.ratios(Channel.LOCAL, step.local, step.known[Channel.LOCAL])
            if step.total is not None:  # one batch is behind both
                known = step.known[Channel.GLOBAL]
                seen[Audience.PERSONAL] += self._in_total(Audience.PERSONAL, step, step.total, known)
        for audience, ratios in seen.items():
            self.ratios.setdefault(audience, []).append(ratios)

    def _in_total(self, audience: Audience, step: WatchedStep, total: Tensor, contributions: Tensor) -> Tensor:
        """Judge a sum over all clients; what the others add again and again is known, or learned from earlier sums."""
        if self._knows_others:
            return step.ratios(Channel.GLOBAL, total, contributions)
        earlier = self._earlier[audience]
        rest = total - step.drawn @ contributions.double()
        if earlier:
            known = drifts(earlier)
            total, contributions = without(total, known), without(contributions, known)
        earlier.append(rest)
        return step.ratios(Channel.GLOBAL, total, contributions)


@dataclass(frozen=True)
class ClippedRows(WrappedMechanism):
    """Keeps the rows that a step would clip, and releases zeros."""

    rows: dict[Channel, Tensor] = field(default_factory=dict)
    """[b, p] clipped gradients by channel, in clip norms; filled as the step goes."""

    def clip(self, channel: Channel, grads: Float[Tensor, "b *p"]) -> ClippedSum:
        """Keep the rows, and clip."""
        norm = self.clip_norms[channel]
        self._keep(channel, (clip_factors(grads, norm) / norm)[:, None] * grads.flatten(1))
        return self.inner.clip(channel, grads)

    def clip_in_classes(self, channel: Channel, rows: ClassRows) -> ClippedSum:
        """Keep what each example alone would add to the sums, and clip."""
        alone = [
            self.inner.clip_in_classes(channel, dataclasses.replace(rows, values=value, labels=label)).value.flatten()
            for value, label in zip(rows.values.split(1), rows.labels.split(1), strict=True)
        ]
        self._keep(channel, torch.stack(alone) / self.clip_norms[channel])
        return self.inner.clip_in_classes(channel, rows)

    def _keep(self, channel: Channel, rows: Float[Tensor, "b p"]) -> None:
        """Put rows behind those of earlier chunks."""
        self.rows[channel] = torch.cat([self.rows[channel], rows]) if channel in self.rows else rows

    def release(self, channel: Channel, summed: ClippedSum) -> Release:
        """Return zeros."""
        return Release(torch.zeros_like(summed.value))


def in_groups(rows: Float[Tensor, "b p"], groups: Int64[Tensor, " b2"] | None) -> Float[Tensor, "n p"]:
    """Add up rows of examples that belong together; rows that are of groups already, or of no groups, stay."""
    if groups is None or len(rows) != len(groups):
        return rows
    return rows.new_zeros(int(groups.max()) + 1, rows.shape[1]).index_add_(0, groups.to(rows.device), rows)


def watched(arm: Arm, watch: TrainingObserver) -> Arm:
    """Return the same arm, which leaves absent examples out of its batches and tells a watch what happens."""
    plan = dataclasses.replace(arm.plan, observer=watch)
    return dataclasses.replace(arm, method=cast(Method, WatchedMethod(arm.method, watch)), plan=plan)


def shared_context(method: Any, shared: Shared) -> Tensor | None:
    """Return the global context; None where nothing, or something else, is shared."""
    context: Tensor | None = method.shared_context(shared) if hasattr(method, "shared_context") else None
    return context


class WatchedMethod:
    """A method that tells a watch what happens; everything else is the method's own."""

    def __init__(self, method: Method, watch: TrainingObserver) -> None:
        self.method = method
        self._watch = watch
        for name in FORWARDED:  # a protocol check of Python 3.12 or later does not ask `__getattr__`
            setattr(self, name, getattr(method, name))

    def __getattr__(self, name: str) -> Any:
        """Return what the method has under a name."""
        return getattr(self.method, name)

    def client_step(
        self, model: Any, shared: Shared, personal: Personal, batch: Batch, mechanism: Mechanism, rng: Any
    ) -> tuple[Upload, Personal, StepInfo]:
        """Step with the examples that are there."""
        there = batch.labels != ABSENT
        rest = batch.of(there.nonzero()[:, 0])
        is_own = self._watch.owns(personal)
        if is_own:
            self._watch.begin_step(self.method, model, shared, mechanism, rng)
        outcome = self.method.client_step(model, shared, personal, rest, mechanism.among(there), rng)
        if is_own:
            self._watch.end_step(outcome[0], outcome[1])
        return outcome

    def server_step(self, shared: Shared, released: Tensor) -> Shared:
        """Tell what is released, and step."""
        self._watch.on_server_step(self.method, shared, released)
        return self.method.server_step(shared, released)
