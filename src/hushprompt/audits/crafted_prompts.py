"""A server that sends prompts of its own making, so that one example stands out in what a client uploads.

The threat is PromptMIA's (Nguyen et al. 2026, arXiv:2601.06641): a malicious server plants a crafted prompt and reads
from its update whether a client has one example. There, images pick prompts out of a pool by keys, and a crafted key is
picked by the target alone. Methods here have no pool: every example of a batch has a gradient at the one shared
context. So the construction is our own: a context is sought at which the client's other examples are classified rightly
and surely, which leaves them next to no gradient, and the target is not, so that its gradient is clipped at the full
norm. The server knows the client's examples, and lacks only whether the target is among them and who is drawn: the
worst that a claim allows for. Client, batches, clipping and noise are those of the run.

Each target is attacked in 20 runs of the client, 10 with it and 10 without it, all of them independent, so error rates
bound epsilon (`lower_bounds.py`). The same attack on the sums before noise says what it is able to find.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from hushprompt.audits import metrics
from hushprompt.audits.canaries import RELEASES
from hushprompt.audits.likelihood import SumTest, over_steps
from hushprompt.audits.mechanism_audit import bound_of, by_independent_trials
from hushprompt.audits.metrics import AttackResult
from hushprompt.audits.watch import ABSENT, ClippedRows, TrainingObserver, watched
from hushprompt.audits.world import World, start
from hushprompt.config.schema import RunConfig
from hushprompt.federation import payload
from hushprompt.federation.client import ClientUpdate, Step
from hushprompt.federation.payload import PayloadKind, payload_kind
from hushprompt.federation.training import Participants
from hushprompt.methods.base import Batch, Personal, Upload
from hushprompt.methods.context import ContextConfig, HasContext
from hushprompt.privacy.adaptive import ClipNorms
from hushprompt.privacy.config import Audience, Channel
from hushprompt.privacy.mechanisms.base import Mechanism
from hushprompt.prompts.generative_model import GenerativeModel
from hushprompt.prompts.optimizer import Optimizer
from hushprompt.runs.arm import Arm
from hushprompt.runs.state import State
from hushprompt.seeding import stream

NAME = "crafted prompt"
NUM_RUNS = 20
"""Runs of the client for each target; every other one has it."""
RATE, NUM_STEPS, EVERY = 0.1, 200, 40
"""Learning rate and steps that a context is sought with, and after how many of them it is judged."""
TARGET_WEIGHT, TARGET_LOSS = 0.2, 2.0
"""Weight of the target's loss among the others' mean, and the loss from which on it is wrong enough."""
NOISE = 1.0
"""Deviation of the noise, in clip norms, under which a context is judged; the same for all budgets."""


def why_left_out(config: RunConfig, arm: Arm, client_id: int) -> str | None:
    """Return a sentence that says why no prompt can be crafted against a client; None where one can."""
    title = arm.method.title
    if not isinstance(arm.method, ContextConfig) or Channel.GLOBAL not in arm.plan.channels:
        return f"A crafted prompt is a shared context at which clients take gradients, and {title} has none."
    if arm.plan.release_plan.batch_clipping is not None:
        return f"A crafted prompt makes one clipped gradient stand out, and {title} clips batches."
    if config.privacy.privacy_unit != "example":
        return f'A crafted prompt is aimed at one example, and privacy.privacy_unit is "{config.privacy.privacy_unit}".'
    if payload_kind(config.training.local_steps, arm.plan.config.noise_at) is PayloadKind.COPIES:
        return "A crafted prompt is read from one step, and clients step copies of it (training.local_steps > 1)."
    if not _rounds(arm, client_id):
        return f"A crafted prompt is sent to a client that takes part, and client {client_id} is in no round."
    return None


def attack_target(world: World, arm: Arm, index: int) -> dict[str, Tensor]:
    """Craft a prompt against one of the client's examples, and run the client with and without it.

    Args:
        world: whose candidates are the client's examples.
        arm: method and privacy plan.
        index: which of the targets, from 0.

    Returns:
        `is_in` [r] whether the target is there; `clear` [r, t] log-likelihood ratios of each clear sum, and `holds`
        [r, t] whether the target is in it; `seen` [r] the ratio of all uploads, where clients add the noise.
    """
    place = int(stream(world.config.seed, "crafted targets").permutation(len(world.candidates.indices))[index])
    crafted = craft(world, arm, place)
    runs = [_run(world, arm, crafted, index, number) for number in range(NUM_RUNS)]
    return {name: torch.stack([one[name] for one in runs]) for name in runs[0]}


@dataclass(frozen=True)
class Crafted:
    """A context, and how the server reads what a client makes of it."""

    state: State
    """The public start, with the crafted context as what is shared."""
    place: int
    """Of the target among the candidates."""
    offset: Float[Tensor, " p"]
    """[p] what the client uploads of no example, in clip norms."""
    test: SumTest


def craft(world: World, arm: Arm, place: int) -> Crafted:
    """Return the context at which a target stands out the most, of those that a search passes.

    Args:
        world: whose candidates the server knows.
        arm: method and privacy plan.
        place: of the target among the candidates.
    """
    known = _known(world, arm)
    context = known.state.shared.context
    best = known.judged(context, place)
    optimizer = Optimizer(name="adam", learning_rate=RATE)
    moments = optimizer.init(context)
    for step in range(1, NUM_STEPS + 1):
        context, moments = optimizer.step(context, known.slope(context, place), moments)
        if step % EVERY == 0:
            best = max(best, known.judged(context, place), key=lambda one: one.test.distance(NOISE))
    return best


@dataclass(frozen=True)
class _Known:
    """What the server knows."""

    world: World
    arm: Arm
    state: State
    """The public start."""
    batch: Batch
    """All of the client's examples."""

    @property
    def personal(self) -> Personal:
        """The public start of the client's own prompt; how it goes on is not known."""
        return self.state.personal[self.world.candidates.client_id]

    def slope(self, context: Tensor, place: int) -> Tensor:
        """Return the gradient of what a crafted context makes small: all losses but the target's."""
        moved = context.detach().clone().requires_grad_(True)
        losses = self.losses(dataclasses.replace(self.state.shared, context=moved))
        others = (losses.sum() - losses[place]) / max(len(losses) - 1, 1)
        (slope,) = torch.autograd.grad(others + TARGET_WEIGHT * (TARGET_LOSS - losses[place]).relu(), moved)
        return slope

    def losses(self, shared: Any) -> Float[Tensor, " n"]:
        """Return the loss of each of the client's examples, differentiable in the shared context."""
        model, method, batch = self.world.federation.model, self.arm.method, self.batch
        if isinstance(model, GenerativeModel):
            context = cast(HasContext, method).context(shared, self.personal)
            grads, losses = model.gradients(context.detach(), batch)
            # The same values and slopes, and no pass keeps more examples for its way back than a step does.
            moved = torch.einsum("bte,te->b", grads, context)
            return losses + moved - moved.detach()
        logits = method.logits(model, shared, self.personal, batch.image_features)
        return F.cross_entropy(logits, batch.labels, reduction="none")

    def judged(self, context: Tensor, place: int) -> Crafted:
        """Compute what each of the client's examples would add at a context, and how far the target stands out."""
        client, plan = self.world.candidates.client_id, self.arm.plan
        state = dataclasses.replace(self.state, shared=dataclasses.replace(self.state.shared, context=context.detach()))
        norms = None if state.norms is None else state.norms.of(client)
        count = plan.sampler.expected_batch_size(len(self.batch.labels))
        rng = np.random.default_rng(0)  # releases are zeros, and methods draw next to nothing

        def clipped(batch: Batch) -> tuple[Tensor, Tensor]:
            tool = plan.mechanism(allowed=Channel.LOCAL, expected_count=count, rng=rng, clip_norms=norms)
            asking, model = ClippedRows(tool), self.world.federation.model
            upload, _, _ = self.arm.method.client_step(model, state.shared, self.personal, batch, asking, rng)
            assert upload.shared_grad is not None, "the method has a global channel"
            return asking.rows[Channel.GLOBAL].double(), upload.shared_grad.value.flatten().double()

        nobody = self.batch.of(self.batch.labels[:0])
        (rows, _), (_, nothing) = clipped(self.batch), clipped(nobody)
        others = torch.cat([rows[:place], rows[place + 1 :]])
        norm = plan.release_plan.clip_norms[Channel.GLOBAL] if norms is None else norms[str(Channel.GLOBAL)]
        return Crafted(state, place, nothing / norm, SumTest(rows[place], others, count / len(rows)))


def _known(world: World, arm: Arm) -> _Known:
    """Return what the server knows."""
    return _Known(world, arm, start(world.config, world.federation, arm), world.examples)


def _run(world: World, arm: Arm, crafted: Crafted, index: int, number: int) -> dict[str, Tensor]:
    """Let the client take part in all its rounds, with the crafted prompt sent in each step, and test what it sends."""
    is_in = number % 2 == 0
    seed = int(stream(world.config.seed, "crafted run", index, number).integers(2**62))
    count = arm.plan.sampler.expected_batch_size(len(world.candidates.indices))
    noise, clear, seen, holds = arm.plan.release_plan.sum_multiplier(Channel.GLOBAL), [], [], []
    for step in _Attacked(world, arm, crafted, is_in, seed).steps():
        clear.append(crafted.test.ratio(step.clear - crafted.offset, 0.0))
        holds.append(is_in and step.is_drawn)
        if step.noisy is not None:
            ratio = crafted.test.ratio(step.noisy - crafted.offset, noise)
            seen.append(torch.tensor([ratio], dtype=torch.float64))
    kept = {"is_in": torch.tensor(is_in), "clear": torch.tensor(clear), "holds": torch.tensor(holds)}
    prob = count / len(world.candidates.indices)
    return kept | ({"seen": torch.tensor(over_steps(seen, prob)[0])} if seen else {})


@dataclass(frozen=True)
class _Uploaded:
    """One step of a client that has a crafted prompt, in clip norms."""

    clear: Float[Tensor, " p"]
    """[p] its clipped sum."""
    noisy: Float[Tensor, " p"] | None
    """[p] what the server learns of the sum; None where that is the sum."""
    is_drawn: bool
    """Whether the target's place is in the batch."""


class _Attacked:
    """The client in one of its runs, with a server that always sends the crafted prompt."""

    def __init__(self, world: World, arm: Arm, crafted: Crafted, is_in: bool, seed: int) -> None:
        """Begin, with batches and noise of a seed, and without the target where that is out."""
        labels, federation = world.federation.train_labels.clone(), world.federation
        if not is_in:
            labels[world.candidates.indices[crafted.place]] = ABSENT
        changed = dataclasses.replace(federation, train_labels=labels)
        with ThreadPoolExecutor(1) as pool:
            self._clients = Participants(dataclasses.replace(world.config, seed=seed), changed, pool).clients
        self._client_id, self._watch = world.candidates.client_id, _Uploads()
        self._crafted, self._arm, self._watched = crafted, arm, watched(arm, self._watch)
        self._kind = payload_kind(world.config.training.local_steps, arm.plan.config.noise_at)

    def steps(self) -> Iterator[_Uploaded]:
        """Take all steps of the client; it keeps its own state."""
        client, arm = self._clients[self._client_id], self._arm
        personal, norms = self._crafted.state.personal[self._client_id], self._crafted.state.norms
        count = arm.plan.sampler.expected_batch_size(len(client.index))
        for round_index in _rounds(arm, self._client_id):
            for place, batch in enumerate(client.batches(arm, round_index)):
                step = Step(round_index, place)
                message, clear = self._update(self._client_id, personal, norms, batch, step)
                personal, norm, noisy = message.personal, self._watch.norm, None
                if self._kind is PayloadKind.GRADIENTS:
                    noisy = message.message.flatten().double() * count / norm
                if self._kind is PayloadKind.SHARES:
                    noisy = self._opened(message.message, norms, step) / norm
                if norms is not None:
                    norms = norms.with_local({self._client_id: message.norm})
                yield _Uploaded(clear / norm, noisy, self._crafted.place in batch)

    def _update(
        self, client_id: int, personal: Personal, norms: ClipNorms | None, batch: np.ndarray, step: Step
    ) -> tuple[ClientUpdate, Float[Tensor, " p"]]:
        """Let a client answer to the crafted prompt; give its answer and its clipped sum."""
        shared = self._arm.method.begin_round(self._crafted.state.shared)
        own = None if norms is None else norms.of(client_id)
        asked = len(self._arm.cohorts[step.round_index])
        done = self._clients[client_id].update(
            self._watched, shared, own, personal, [batch], step, num_participants=asked
        )
        return done, self._watch.summed

    def _opened(self, message: Int64[np.ndarray, " l"], norms: ClipNorms | None, step: Step) -> Float[Tensor, " p"]:
        """Return what the server learns of a client's sum from the sum over all, with as many on its side as planned.

        It knows what those add, noise included, and the other clients' sums, but not their shares of the noise.
        """
        plan, cohort = self._arm.plan, self._arm.cohorts[step.round_index].tolist()
        others = [client_id for client_id in cohort if client_id != self._client_id]
        nobody, messages, known = np.zeros(0, dtype=np.int64), [message], torch.zeros((), dtype=torch.float64)
        for client_id in others[: plan.terms().honest_among(len(cohort)) - 1]:
            done, clear = self._update(client_id, self._crafted.state.personal[client_id], norms, nobody, step)
            messages.append(done.message)
            known = known + clear
        own = None if norms is None else norms.of(self._client_id)
        rng = np.random.default_rng(0)  # nothing is drawn: the noise is in the sum
        tool = plan.mechanism(
            allowed=Channel.GLOBAL, expected_count=1.0, rng=rng, num_clients=1, clip_norms=own, step=step.step_index
        )
        opened = tool.open_shares(Channel.GLOBAL, payload.add_shares(messages), len(cohort))
        return opened.value.flatten().double() * tool.expected_count - known


class _Uploads(TrainingObserver):
    """Keeps the clipped sum of a client's last step, which the server has where it is trusted with it."""

    def __init__(self) -> None:
        self.summed, self.norm = torch.zeros(0, dtype=torch.float64), 1.0

    def owns(self, personal: Personal) -> bool:
        """Whether a state is a client's that is told of: every client's."""
        return True

    def begin_step(
        self, method: object, model: object, shared: object, mechanism: Mechanism, rng: np.random.Generator
    ) -> None:
        """Note the clip norm."""
        self.norm = mechanism.clip_norms[Channel.GLOBAL]

    def end_step(self, upload: Upload, personal: Personal) -> None:
        """Keep the sum."""
        assert upload.shared_grad is not None, "the method has a global channel"
        self.summed = upload.shared_grad.value.flatten().double()


def crafted_results(
    targets: Sequence[dict[str, Tensor]], arm: Arm, seed: int
) -> tuple[AttackResult | None, AttackResult | None]:
    """Measure the attack on clear sums, and on what the server sees.

    Args:
        targets: of `attack_target`, one each.
        arm: method and privacy plan.
        seed: root of the resampling.

    Returns:
        How well one clear sum tells whether it holds the target, None where no sum holds one; and how well all that the
        server sees tells whether the client has the target, with a bound on epsilon, None where it sees clear sums.
    """
    stacked = {name: torch.stack([one[name] for one in targets], dim=-1).numpy() for name in targets[0]}
    holds, is_in, clear, seen = stacked["holds"], stacked["is_in"], None, None
    if holds.any() and not holds.all():
        scores, is_held = (stacked[name].reshape(-1, len(targets)) for name in ("clear", "holds"))
        clear = metrics.measure(NAME, "one clear sum", scores, is_held, _rng(seed, arm, "clear"))
    if "seen" in stacked:
        seen = metrics.measure(NAME, RELEASES[Audience.SERVER], stacked["seen"], is_in, _rng(seed, arm, "seen"))
        is_gaussian = bound_of(arm.plan) == "f_dp_gaussian"
        bound = by_independent_trials(
            stacked["seen"].ravel(), is_in.ravel(), arm.plan.config.delta, is_gaussian=is_gaussian
        )
        seen = dataclasses.replace(seen, bound=bound)
    return clear, seen


def _rounds(arm: Arm, client_id: int) -> list[int]:
    """Return the rounds that a client takes part in."""
    return [index for index in range(arm.num_rounds) if client_id in arm.cohorts[index]]


def _rng(seed: int, arm: Arm, what: str) -> np.random.Generator:
    """Return the stream of a resampling."""
    return stream(seed, "bootstrap crafted", arm.label, what)
