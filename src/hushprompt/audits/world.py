"""One client's examples, each of them there or not, in an otherwise unchanged federation.

An audit trains the same federation again and again, with other subsets of one client's candidates. The loop, the
method, the sampler, the clipping and the noise are those of `hushprompt run`; two things differ. An example that is
left out keeps its place and counts in the client's public size, but is taken out of every batch before the method sees
it, which for Poisson and for disjoint sampling is the same as if it had never been there: the divisor stays the public
number that it is in the theorem. And a watch notes what every audience sees.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hushprompt import seeding
from hushprompt.audits.scores import answer_log_probs
from hushprompt.audits.watch import ABSENT, Probe, TrainingObserver, Transcript, Watch, shared_context, watched
from hushprompt.config.schema import RunConfig
from hushprompt.errors import ConfigError
from hushprompt.federation.payload import PayloadKind, payload_kind
from hushprompt.federation.setup import Federation
from hushprompt.federation.training import Participants, RoundInfo, train
from hushprompt.methods.base import Batch, Method, Shared
from hushprompt.methods.context import ContextConfig
from hushprompt.methods.linear_head import LinearHead
from hushprompt.models.base import FeatureKind
from hushprompt.privacy.config import Audience, Channel
from hushprompt.prompts.generative_model import GenerativeModel
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.prompts.texts import TextTokens
from hushprompt.runs.arm import Arm
from hushprompt.runs.state import State

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
    groups: Int[np.ndarray, " m"] | None = None
    """Number of each one's group, from 0, where groups are in question as a whole; None: each example is on its own."""
    texts: TextTokens | None = None
    """Questions and the answers that are trained on, true or made up; None in classification."""

    @property
    def num_coins(self) -> int:
        """What is in or out: examples, or groups."""
        return len(self.indices) if self.groups is None else int(self.groups.max()) + 1

    @property
    def targets(self) -> Int[np.ndarray, " m"]:
        """Column of `World.log_probs` that each is trained on: its class, or of two "this answer"."""
        return self.labels if self.texts is None else np.zeros_like(self.labels)

    def by_coin(self, values: Float[Tensor, " m"]) -> Float[Tensor, " k"]:
        """Return what is said of each coin: of its example, or on average of its group's."""
        if self.groups is None:
            return values
        groups = torch.from_numpy(self.groups)
        return values.new_zeros(self.num_coins).index_add_(0, groups, values) / groups.bincount()

    def rows(self, is_in: Bool[np.ndarray, " k"]) -> Bool[np.ndarray, " m"]:
        """Return which examples take part where these coins are in."""
        return is_in if self.groups is None else is_in[self.groups]


@dataclass(frozen=True)
class World:
    """A federation under attack."""

    config: RunConfig
    federation: Federation
    candidates: Candidates

    @property
    def features(self) -> Float[Tensor, "m *t d"]:
        """Image features of the candidates, first view."""
        stored = self.federation.train_features[KIND]
        return stored.rows(self.candidates.indices, np.zeros_like(self.candidates.indices))

    @property
    def examples(self) -> Batch:
        """The candidates, as they are trained on."""
        device, own = self.federation.model.device, self.candidates
        return Batch(self.features.to(device), torch.from_numpy(own.labels).to(device), self.declared, own.texts)

    @property
    def population(self) -> Batch:
        """The client's evaluation examples, which nobody trains on."""
        chosen, federation = self.federation.splits[self.candidates.client_id].local, self.federation
        texts = None if federation.quiz is None else federation.quiz.texts.of(torch.from_numpy(chosen))
        return Batch(federation.eval_features[KIND][chosen], federation.eval_labels[chosen], self.declared, texts)

    @property
    def declared(self) -> tuple[int, ...] | None:
        """Classes that the client is publicly declared to have; None: not declared."""
        sets = self.federation.declared
        return None if sets is None else sets[self.candidates.client_id]

    def with_answers(
        self, places: Int[np.ndarray, " k"], answers: Sequence[str], groups: Int[np.ndarray, " k"] | None = None
    ) -> World:
        """Return the same federation with other answers to some of the candidates' questions; these are the candidates.

        Args:
            places: among the candidates.
            answers: one each.
            groups: number of each one's group, where one coin decides for several.

        Raises:
            ConfigError: an answer does not fit the model's window.
        """
        own, model, rows = self.candidates, self.federation.model, torch.from_numpy(places)
        assert own.texts is not None, "the data have questions"
        assert isinstance(model, GenerativeModel), "which a generative model answers"
        texts = TextTokens(own.texts.questions[rows], model.texts([""] * len(answers), answers).answers)
        num_ctx = getattr(self.config.method, "num_ctx", 0)
        model.check_window(num_ctx, texts.questions.shape[1], texts.answers.shape[1])
        chosen = Candidates(own.client_id, own.indices[places], own.labels[places], groups, texts)
        return dataclasses.replace(self, candidates=chosen)

    def train(self, arm: Arm, is_in: Bool[np.ndarray, " k"], seed: int, *, judges: bool = False) -> tuple[State, Watch]:
        """Train an arm from its start without the candidates that are out.

        Args:
            arm: method and privacy plan.
            is_in: [k] which candidates take part, or which groups of them.
            seed: of batches and noise; the start of the prompts is public, and the config's.
            judges: whether the watch also weighs every release by what each example would have added to it.

        Returns:
            The end of the training, and what was seen of it.
        """
        labels, texts, own = self.federation.train_labels.clone(), self.federation.train_texts, self.candidates
        labels[own.indices] = torch.from_numpy(own.labels)
        if texts is not None and own.texts is not None:
            texts = texts.put(torch.from_numpy(own.indices), own.texts)
        probe = self._probe(arm, labels, texts) if judges else None
        labels[own.indices[~own.rows(is_in)]] = ABSENT
        federation = dataclasses.replace(self.federation, train_labels=labels, train_texts=texts)
        state = start(self.config, federation, arm)
        # Clients that step copies of their own call server_step too, and nobody else sees that.
        travels = payload_kind(self.config.training.local_steps, arm.plan.config.noise_at)
        is_seen = travels is not PayloadKind.COPIES
        personal, is_head = state.personal[own.client_id], isinstance(arm.method, LinearHead)
        watch = Watch(personal, probe, is_public=is_seen, knows_others=is_head)
        return train_watched(dataclasses.replace(self.config, seed=seed), federation, arm, state, watch), watch

    def _probe(self, arm: Arm, labels: Int[Tensor, " n"], texts: TextTokens | None) -> Probe:
        """Describe the client's examples to a watch."""
        client = self.federation.partition.clients[self.candidates.client_id]
        indices = np.asarray(client.indices["train"])
        stored = self.federation.train_features[arm.method.feature_kind]
        features = stored.rows(indices, np.zeros_like(indices)).to(self.federation.model.device)
        is_candidate = np.isin(indices, self.candidates.indices)
        groups = None if client.groups is None else torch.from_numpy(client.groups)
        if client.groups is not None:
            is_candidate = np.isin(np.arange(client.size), client.groups[is_candidate])
        prob = arm.plan.sampler.expected_batch_size(client.size) / client.size
        drawn = torch.from_numpy(np.where(is_candidate, prob / 2, prob))
        own = None if texts is None else texts.of(torch.from_numpy(indices))
        batch = Batch(features, labels[indices].to(self.federation.model.device), self.declared, own)
        return Probe(batch, drawn, prob, is_candidate, groups)

    def log_probs(self, arm: Arm, state: State, audience: Audience, examples: Batch) -> Float[Tensor, "n c"]:
        """Return what the prompt that an audience holds says: log-probabilities of all classes.

        Of questions there are two columns: the true answer, and any other (`answer_log_probs`).
        """
        model, method, features = self.federation.model, arm.method, examples.image_features
        with torch.no_grad():
            if examples.texts is not None:
                return answer_log_probs(self.losses(arm, self.context(arm, state, audience), examples))
            if audience is Audience.PERSONAL:
                personal = state.personal[self.candidates.client_id]
                return method.logits(model, state.shared, personal, features).log_softmax(dim=1)
            if isinstance(method, LinearHead):
                assert isinstance(model, PromptModel), "a head is of a model with two towers"
                return method.head(model, state.shared).logits(features.cpu()).log_softmax(dim=1).float()
            context = self.context(arm, state, audience)
            return model.scores(context, features, context_method(method).name_position).log_softmax(dim=1)

    def context(self, arm: Arm, state: State, audience: Audience) -> Float[Tensor, "*c t e"]:
        """Return the context that an audience holds."""
        method: Any = context_method(arm.method)
        if audience is Audience.PERSONAL:
            held: Tensor | None = method.context(state.shared, state.personal[self.candidates.client_id])
        else:
            held = shared_context(method, state.shared)
        assert held is not None, "an audience is attacked only where it sees a prompt"
        return held

    def losses(self, arm: Arm, context: Float[Tensor, "*c t e"], examples: Batch) -> Float[Tensor, " n"]:
        """Return the loss of examples at a context: cross-entropy, or what a generative model trains on."""
        model, method = self.federation.model, context_method(arm.method)
        if isinstance(model, GenerativeModel):
            return model.losses_at(context, examples.image_features, examples.labels, examples.texts).double()
        logits = model.scores(context, examples.image_features, method.name_position)
        return F.cross_entropy(logits, examples.labels, reduction="none").double()

    def class_rows(self, method: LinearHead, shared: Shared) -> Float[np.ndarray, " m"]:
        """Return the product of each candidate's residual with the published row of its class.

        A member's residual, what sets it apart from other images of its class, lies in the row. The class's mean is
        taken from images that nobody trains on.
        """
        unseen = self.population
        others, classes = unseen.image_features, unseen.labels.cpu().numpy()
        model = self.federation.model
        assert isinstance(model, PromptModel), "a head is of a model with two towers"
        head = method.head(model, shared)
        means = torch.zeros_like(head.text_features).index_add_(0, torch.from_numpy(classes), others.cpu().double())
        counts = torch.from_numpy(np.bincount(classes, minlength=len(means)).clip(min=1))
        labels = torch.from_numpy(self.candidates.labels)
        residuals = self.features.cpu().double() - (means / counts[:, None])[labels]
        return head.logit_scale * (residuals * head.text_features[labels]).sum(dim=1).numpy()

    def projections(self, arm: Arm, transcript: Transcript) -> Float[np.ndarray, " m"]:
        """Return the mean over releases of each candidate's <gradient, release / |release|>.

        The idea is FedMIA's second attack (Zhu et al. 2025, arXiv:2402.06289): a member's gradient lies in the released
        sum. The gradient is taken where the public can, at the global context, and only its component along the
        release is needed: the slope of the loss, by central differences, from two forward passes for all candidates.
        Its division by the gradient's length, which would make it a cosine, is left to the attack's standardization.
        """
        examples, slopes = self.examples, []
        with torch.no_grad():
            for context, release in zip(transcript.contexts, transcript.releases, strict=True):
                length = float(release.norm())
                if length == 0:
                    continue
                step = STEP * float(context.norm())
                ahead = step / length * release
                there, back = (self.losses(arm, context + way * ahead, examples) for way in (1, -1))
                slopes.append((there - back).cpu() / (2 * step))
        return torch.stack(slopes).mean(dim=0).numpy() if slopes else np.zeros(len(self.candidates.indices))


def start(config: RunConfig, federation: Federation, arm: Arm) -> State:
    """Return the public start; every client's state is an object of its own, by which a watch knows the client."""
    shared, personal = arm.method.init(federation.model, seeding.stream(config.seed, "init"))
    num_clients = len(federation.partition.clients)
    everyone = tuple(copy.copy(personal) for _ in range(num_clients))
    return State(shared, everyone, arm.plan.release_plan.first_norms(num_clients))


def train_watched(config: RunConfig, federation: Federation, arm: Arm, state: State, watch: TrainingObserver) -> State:
    """Take all rounds of an arm, and tell a watch what happens.

    Args:
        config: whose seed is that of batches and noise.
        federation: examples that are left out have the label `ABSENT`.
        arm: method and privacy plan.
        state: where to start.
        watch: told of every step and round.
    """
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        trained, _ = train(
            watched(arm, watch), state, Participants(config, federation, pool), _Unrecorded(arm, watch, state.shared)
        )
    return trained


class _Unrecorded:
    """Books of a training that is only watched: it is charged nothing, scored never, and written nowhere."""

    def __init__(self, arm: Arm, watch: TrainingObserver, shared: Shared) -> None:
        """Start at the shared state before the first round."""
        self._arm, self._watch, self._before = arm, watch, shared

    def charge(self, arm: Arm, round_index: int) -> None:
        """Let every round run."""

    def score(self, arm: Arm, state: State, info: RoundInfo) -> None:
        """Leave the prompts to the attacks."""

    def record(self, arm: Arm, state: State, info: RoundInfo, scores: object) -> None:
        """Tell the watch of the round."""
        self._watch.on_round(self._arm.method, self._before, state.shared)
        self._before = state.shared


def check_attackable(method: Method) -> None:
    """Raise ConfigError unless a method publishes a context or a linear classifier for one vector an image."""
    if not isinstance(method, (ContextConfig, LinearHead)) or method.feature_kind != KIND:
        raise ConfigError(
            f"The audit attacks contexts and linear classifiers of {KIND} features, and {type(method).__name__} has "
            "none. Use another method."
        )


def context_method(method: Method) -> ContextConfig:
    """Return a method as one with a context; ConfigError where it is none that can be attacked."""
    check_attackable(method)
    assert isinstance(method, ContextConfig), "heads are judged by their releases"
    return method


def audiences(arm: Arm) -> list[Audience]:
    """Return the audiences that see something of an arm and have a claim.

    The public sees the global prompt, a holder a personal one, and the server uploads, where clients add the noise.
    """
    sees = {Audience.PUBLIC: Channel.GLOBAL, Audience.PERSONAL: Channel.LOCAL, Audience.SERVER: Channel.GLOBAL}
    return [audience for audience in arm.plan.audiences if sees[audience] in arm.plan.channels]


def candidates_of(federation: Federation, client_id: int) -> Candidates:
    """Return all training examples of a client, with their own labels, in groups where these are the unit.

    Raises:
        ConfigError: there is no such client.
    """
    clients = federation.partition.clients
    if not 0 <= client_id < len(clients):
        raise ConfigError(f"--client must lie in 0 to {len(clients) - 1}, got {client_id}.")
    indices = np.asarray(clients[client_id].indices["train"], dtype=np.int64)
    rows, groups = torch.from_numpy(indices), clients[client_id].groups
    texts = None if federation.train_texts is None else federation.train_texts.of(rows)
    return Candidates(client_id, indices, federation.train_labels[rows].numpy(), groups, texts)
