"""Whole clients as canaries, end to end: a lower bound on epsilon where the unit is a client.

In each of several federations every client is there or not by a fair coin; one that is out has no example in any batch.
The auditor sees what the public sees and guesses the coins (Steinke, Nasr, Jagielski 2023, arXiv:2305.08846). Several
federations together are one run with more canaries: each coin still meets the same guarantee. A client's part in a step
is known up to its batch, so the likelihood ratio of all releases as one long vector (`likelihood.py`) scores its coin.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hushprompt.audits.likelihood import log_likelihood_ratios
from hushprompt.audits.watch import ABSENT, TrainingObserver
from hushprompt.audits.world import start, train_watched
from hushprompt.config.schema import RunConfig
from hushprompt.federation.payload import PayloadKind, payload_kind
from hushprompt.federation.setup import Federation
from hushprompt.methods.base import Batch, Personal, Shared
from hushprompt.privacy.clipping import ClippedSum
from hushprompt.privacy.config import Audience, Channel
from hushprompt.privacy.mechanisms.base import Mechanism
from hushprompt.runs.arm import Arm
from hushprompt.seeding import stream

MOST_IMAGES = 64
"""Images of a client from which the auditor computes its part in a step; more cost much and change little."""


def has_client_canaries(config: RunConfig, arm: Arm) -> bool:
    """Whether clients can be canaries: they are the unit, and the public sees one noisy sum of theirs in every step."""
    travels = payload_kind(config.training.local_steps, config.privacy.noise_at)
    is_unit, is_one_sum = config.privacy.privacy_unit == "client", travels in (PayloadKind.SUMS, PayloadKind.SHARES)
    return is_unit and is_one_sum and Channel.GLOBAL in arm.plan.channels


def train_clients(config: RunConfig, federation: Federation, arm: Arm, index: int) -> dict[str, Tensor]:
    """Train federation `index` with each client there or not, and give the coins [k] and the public's scores [k]."""
    clients = federation.partition.clients
    is_in = stream(config.seed, "client inclusion", index).random(len(clients)) < 0.5
    seed = int(stream(config.seed, "client canary seed", index).integers(2**62))
    labels = federation.train_labels.clone()
    for client in clients:
        if not is_in[client.client_id]:
            labels[torch.from_numpy(np.asarray(client.indices["train"]))] = ABSENT
    state = start(config, federation, arm)
    watch = ClientWatch(federation, arm, state.personal, stream(seed, "auditor"))
    without = dataclasses.replace(federation, train_labels=labels)
    train_watched(dataclasses.replace(config, seed=seed), without, arm, state, watch)
    return {"is_in": torch.from_numpy(is_in), f"{Audience.PUBLIC}.releases": torch.from_numpy(watch.scores())}


class ClientWatch(TrainingObserver):
    """Notes every global release, and what each client would have added to it."""

    def __init__(
        self, federation: Federation, arm: Arm, personal: Sequence[Personal], rng: np.random.Generator
    ) -> None:
        """Begin.

        Args:
            federation: with the examples of all clients.
            arm: method and privacy plan, unwatched.
            personal: the clients' public start.
            rng: chooses images, and stands for the clients' own randomness, which the auditor does not know.
        """
        self._federation, self._arm, self._rng = federation, arm, rng
        self._personal = list(personal)
        """Of each client as if it had always been there, with the images below in every batch."""
        owned = [np.asarray(client.indices["train"]) for client in federation.partition.clients]
        self._images = [own if len(own) <= MOST_IMAGES else rng.choice(own, MOST_IMAGES, False) for own in owned]
        self.sums: list[Tensor] = []
        """[p] the sum behind each release, in clip norms."""
        self.added: list[Tensor] = []
        """[k, p] what each client would have added."""
        self._mechanism: Mechanism | None = None
        self._round = 0

    def scores(self) -> Float[np.ndarray, " k"]:
        """Return each client's log-likelihood ratio over all releases."""
        num_clients = len(self._personal)
        if not self.sums:
            return np.zeros(num_clients)
        half = torch.full((num_clients,), 0.5)
        noise = self._arm.plan.release_plan.sum_multiplier(Channel.GLOBAL)
        return log_likelihood_ratios(torch.cat(self.sums), torch.cat(self.added, dim=1), half, noise).numpy()

    def on_release(self, mechanism: Mechanism, channel: Channel, summed: ClippedSum | None, released: Tensor) -> None:
        """Note by which mechanism the server releases."""
        if channel is Channel.GLOBAL:
            self._mechanism = mechanism

    def on_server_step(self, method: object, shared: Shared, released: Tensor) -> None:
        """Note the released sum, in clip norms, and what each client of the cohort would have added."""
        assert self._mechanism is not None, "a step follows a release"
        norm = self._mechanism.clip_norms[Channel.GLOBAL]
        self.sums.append(released.flatten().double() * self._mechanism.expected_count / norm)
        added = torch.zeros(len(self._personal), released.numel(), dtype=torch.float64)
        for client_id in self._arm.cohorts[self._round].tolist():
            added[client_id] = self._contribution(client_id, shared, self._mechanism).flatten().double() / norm
        self.added.append(added)

    def on_round(self, method: object, before: Shared, after: Shared) -> None:
        """Count rounds, by which the schedule is known."""
        self._round += 1

    def _contribution(self, client_id: int, shared: Shared, server: Mechanism) -> Tensor:
        """Let a client step with its images, and give its clipped contribution."""
        arm, federation, indices = self._arm, self._federation, self._images[client_id]
        features = federation.train_features[arm.method.feature_kind].rows(indices, np.zeros_like(indices))
        device = federation.model.device
        rows, texts = torch.from_numpy(indices), federation.train_texts
        own = None if texts is None else texts.of(rows)
        batch = Batch(features.to(device), federation.train_labels[rows].to(device), texts=own)
        mechanism = arm.plan.mechanism(
            allowed=Channel.LOCAL,
            expected_count=float(len(indices)),
            rng=self._rng,
            clip_norms={str(channel): norm for channel, norm in server.clip_norms.items()},
        )
        upload, self._personal[client_id], _ = arm.method.client_step(
            federation.model, shared, self._personal[client_id], batch, mechanism, self._rng
        )
        assert upload.shared_grad is not None, "the method has a global channel"
        return upload.shared_grad.value
