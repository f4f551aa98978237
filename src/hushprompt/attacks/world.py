"""One client's examples, each of them there or not, in an otherwise unchanged federation.

An audit trains the same federation again and again, with other subsets of one client's candidates. The loop, the
method, the sampler, the clipping and the noise are those of `hushprompt run`; two things differ. An example that is
left out keeps its place and counts in the client's public size, but is taken out of every batch before the method sees
it, which for Poisson and for disjoint sampling is the same as if it had never been there: the divisor stays the public
number that it is in the theorem. And what the server releases is noted, because the public sees it.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hushprompt import seeding
from hushprompt.backbones.base import FeatureKind
from hushprompt.config import RunConfig
from hushprompt.errors import ConfigError
from hushprompt.federation.aggregate import Travels
from hushprompt.federation.rounds import RoundRunner
from hushprompt.federation.setup import Federation, Row
from hushprompt.federation.states import State
from hushprompt.methods.base import Batch, Method, Personal, Shared, StepInfo, Upload
from hushprompt.methods.context import ContextConfig
from hushprompt.privacy.config import Audience, Channel
from hushprompt.privacy.plan import Mechanism

ABSENT = -1
"""Label of an example that is left out."""
KIND: FeatureKind = "pooled"
"""Image features that the attacks read."""
STEP = 0.01
"""Length of the finite difference along a release, in lengths of the context."""


@dataclass(frozen=True)
class Candidates:
    """The examples of one client whose membership is in question."""

    client_id: int
    indices: Int[np.ndarray, " m"]
    """Into the training split."""
    labels: Int[np.ndarray, " m"]
    """What they are trained with: their own labels, or wrong ones for canaries."""


@dataclass(frozen=True)
class Transcript:
    """What the public sees while a federation trains: one entry for each release."""

    contexts: list[Tensor]
    """Global contexts [t, e] or [c, t, e] before the releases."""
    releases: list[Tensor]
    """Released mean gradients of the same shapes."""


@dataclass(frozen=True)
class World:
    """A federation under attack."""

    config: RunConfig
    federation: Federation
    candidates: Candidates

    @property
    def features(self) -> Float[Tensor, "m d"]:
        """Image features of the candidates, first view."""
        stored = self.federation.train_features[KIND]
        return stored.rows(self.candidates.indices, np.zeros_like(self.candidates.indices))

    @property
    def population(self) -> tuple[Float[Tensor, "p d"], Int[np.ndarray, " p"]]:
        """Features and labels of the client's evaluation images, which nobody trains on."""
        chosen = self.federation.splits[self.candidates.client_id].local
        return self.federation.eval_features[KIND][chosen], self.federation.eval_labels[chosen].numpy()

    def train(self, row: Row, is_in: Bool[np.ndarray, " m"], seed: int) -> tuple[State, Transcript]:
        """Train a row from its start without the candidates that are out.

        Args:
            row: method and privacy plan.
            is_in: [m] which candidates take part.
            seed: of batches and noise; the start of the prompts is public, and the config's.
        """
        labels = self.federation.train_labels.clone()
        labels[self.candidates.indices] = torch.from_numpy(self.candidates.labels)
        labels[self.candidates.indices[~is_in]] = ABSENT
        federation = dataclasses.replace(self.federation, train_labels=labels)
        transcript = Transcript([], [])
        config = dataclasses.replace(self.config, seed=seed)
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            runner = RoundRunner(config, federation, pool)
            # Clients that step copies of their own call server_step too, and nobody else sees that.
            is_seen = runner.travels is not Travels.COPIES
            row = dataclasses.replace(row, method=watched(row.method, transcript if is_seen else None))
            shared, personal = row.method.init(federation.model, seeding.stream(self.config.seed, "init"))
            num_clients = len(federation.partition.clients)
            state = State(shared, (personal,) * num_clients, row.plan.first_norms(num_clients))
            for round_index in range(row.num_rounds):
                before = _shared_context(row.method, state.shared)
                state, _ = runner.round(row, state, round_index)
                after = _shared_context(row.method, state.shared)
                if not is_seen and before is not None and after is not None:
                    transcript.contexts.append(before)
                    transcript.releases.append(before - after)  # what the round moved, against the gradients
        return state, transcript

    def log_probs(
        self, row: Row, state: State, audience: Audience, features: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n c"]:
        """Give what the prompt that an audience holds says of images: log-probabilities of all classes."""
        model, method = self.federation.model, row.method
        with torch.no_grad():
            if audience is Audience.PERSONAL:
                personal = state.personal[self.candidates.client_id]
                return method.logits(model, state.shared, personal, features).log_softmax(dim=1)
            context = _shared_context(method, state.shared)
            assert context is not None, "the public is attacked only where it sees a prompt"
            text_features = context_method(method).text_features(model, context)
            return model.logits(features, text_features).log_softmax(dim=1)

    def projections(self, row: Row, transcript: Transcript) -> Float[np.ndarray, " m"]:
        """Give each candidate's gradient along the releases: the mean over releases of <gradient, release / |release|>.

        The idea is FedMIA's second attack (Zhu et al. 2025, arXiv:2402.06289): a member's gradient lies in the released
        sum. The gradient is taken where the public can, at the global context, and only its component along the
        release is needed: the slope of the loss, by central differences, from two forward passes for all candidates.
        Its division by the gradient's length, which would make it a cosine, is left to the attack's standardization.
        """
        model, features = self.federation.model, self.features
        labels, method = torch.from_numpy(self.candidates.labels), context_method(row.method)

        def losses(context: Tensor) -> Tensor:
            logits = model.logits(features, method.text_features(model, context))
            return torch.nn.functional.cross_entropy(logits, labels, reduction="none").double()

        slopes = []
        with torch.no_grad():
            for context, release in zip(transcript.contexts, transcript.releases, strict=True):
                length = float(release.norm())
                if length == 0:
                    continue
                step = STEP * float(context.norm())
                ahead = step / length * release
                slopes.append((losses(context + ahead) - losses(context - ahead)) / (2 * step))
        return torch.stack(slopes).mean(dim=0).numpy() if slopes else np.zeros(len(labels))


def watched(method: Method, transcript: Transcript | None) -> Method:
    """Give the same method, which leaves absent examples out of its batches and notes what the server releases.

    Args:
        method: what is trained.
        transcript: takes the releases; None: nothing is noted.
    """
    base: Any = type(method)

    class Watched(base):  # type: ignore[misc]
        """The method itself, watched."""

        def client_step(
            self, model: Any, shared: Shared, personal: Personal, batch: Batch, mechanism: Mechanism, rng: Any
        ) -> tuple[Upload, Personal, StepInfo]:
            """Step with the examples that are there."""
            there = batch.labels != ABSENT
            rest = Batch(batch.image_features[there], batch.labels[there])
            outcome: tuple[Upload, Personal, StepInfo] = base.client_step(
                self, model, shared, personal, rest, mechanism, rng
            )
            return outcome

        def server_step(self, shared: Shared, released: Tensor) -> Shared:
            """Note the release, and step."""
            context = _shared_context(self, shared)
            if transcript is not None and context is not None:
                transcript.contexts.append(context)
                transcript.releases.append(released)
            return base.server_step(self, shared, released)

    instance = object.__new__(Watched)
    instance.__dict__.update(vars(method))
    twin: Method = instance
    return twin


def context_method(method: Method) -> ContextConfig:
    """Give the method as one with a context.

    Raises:
        ConfigError: what it publishes is not a context, or it reads other features than one vector an image.
    """
    if not isinstance(method, ContextConfig) or method.feature_kind != KIND:
        raise ConfigError(
            f"The audit attacks contexts that are scored against {KIND} features, and {type(method).__name__} has "
            "none. Use another method."
        )
    return method


def _shared_context(method: Any, shared: Shared) -> Tensor | None:
    """Give the global context; None where nothing, or something else, is shared."""
    context: Tensor | None = method.shared_context(shared) if hasattr(method, "shared_context") else None
    return context


def audiences(row: Row) -> list[Audience]:
    """Give the audiences that see something of a row: the public the global prompt, the holder a personal one."""
    seen = [Audience.PUBLIC] if Channel.GLOBAL in row.plan.channels else []
    return [*seen, Audience.PERSONAL] if Channel.LOCAL in row.plan.channels else seen


def candidates_of(federation: Federation, client_id: int) -> Candidates:
    """Give all training examples of a client, with their own labels.

    Raises:
        ConfigError: there is no such client.
    """
    clients = federation.partition.clients
    if not 0 <= client_id < len(clients):
        raise ConfigError(f"--client must lie in 0 to {len(clients) - 1}, got {client_id}.")
    indices = np.asarray(clients[client_id].indices["train"], dtype=np.int64)
    return Candidates(client_id, indices, federation.train_labels[indices].numpy())
