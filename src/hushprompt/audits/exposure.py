"""Does a prompt tell a secret? Random digits in a training answer, and their rank among all digits that could be there.

Source: Carlini, Liu, Erlingsson, Kos, Song 2019, "The Secret Sharer" (arXiv:1802.08232), section 4: exposure is
log2 |R| - log2 rank, with R the answers that the digits could have made, in the order of their likelihood. A prompt
that never saw the secret has 1.44 bits on average, and log2 |R| says that it is the likeliest of all.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt import checks
from hushprompt.audits.watch import TrainingObserver
from hushprompt.audits.world import audiences, start, train_watched
from hushprompt.config.schema import RunConfig
from hushprompt.errors import ConfigError
from hushprompt.federation.planning import plan_arms
from hushprompt.federation.questions import texts_of
from hushprompt.federation.setup import Federation, assemble, client_sizes, load_model, make_partition
from hushprompt.methods.context import ContextConfig
from hushprompt.privacy.config import Audience
from hushprompt.runs.arm import Arm
from hushprompt.runs.state import State
from hushprompt.seeding import stream
from hushprompt.words import counted

ANSWER = "the code is {}"
"""What a training answer is replaced by; the digits stand apart, so that each is a token."""


@dataclass(frozen=True, kw_only=True)
class SecretSettings:
    """What is hidden, and where."""

    client_id: int = 0
    """Whose training answers are replaced."""
    num_secrets: int = 4
    """Secrets, each in examples of its own."""
    num_repeats: int = 1
    """Training examples that have each secret; a claim for one example is weaker for more."""
    num_digits: int = 3
    """Digits of a secret: |R| is 10 to this power."""

    def __post_init__(self) -> None:
        """Check the fields."""
        checks.positive(num_secrets=self.num_secrets, num_repeats=self.num_repeats)
        checks.in_range(1, 4, num_digits=self.num_digits)


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """How much an audience's prompt tells of the secrets, in bits, one a secret."""

    audience: str
    before: tuple[float, ...]
    """Of the prompt that training starts from, which knows nothing."""
    after: tuple[float, ...]
    """Of the trained prompt."""
    most: float
    """log2 |R|: a secret that is the likeliest of all."""
    claim: str
    """What the run claims for this audience."""


def secret_exposures(config: RunConfig, settings: SecretSettings) -> tuple[Exposure, ...]:
    """Train once with secrets in some of a client's answers, and rank each among all answers of its form.

    Args:
        config: of a run on questions with a method that trains a context; its references are left out.
        settings: what is hidden.

    Returns:
        For the public (global prompt) and for the holder of the client's personal prompt, as far as there are both.

    Raises:
        ConfigError: the data have no questions, the client too few, or the method trains no context.
    """
    config = dataclasses.replace(config, references=())
    dataset = config.data.load()
    if not dataset.is_open:
        raise ConfigError(f"A secret is hidden in an answer, and {dataset.name} has classes. Use hushprompt audit.")
    partition = make_partition(config, dataset)
    (arm,) = plan_arms(config, client_sizes(partition), None)
    seen = [audience for audience in audiences(arm) if audience is not Audience.SERVER]
    if not isinstance(arm.method, ContextConfig) or not seen:
        raise ConfigError("The method trains no context on private data, so no secret can be in one.")
    model: Any = load_model(config, dataset, [arm])
    federation = assemble(config, model, dataset, partition, lambda *_: None)
    chosen = _places(config, federation, settings)
    split, codes = dataset.splits["train"], _codes(settings.num_digits)
    secrets = stream(config.seed, "secret digits").integers(len(codes), size=settings.num_secrets)
    answers = list(split.answers or ())
    for rows, secret in zip(chosen.tolist(), secrets.tolist(), strict=True):
        for row in rows:
            answers[row] = (codes[secret],)
    hidden = dataclasses.replace(split, answers=tuple(answers))
    federation = dataclasses.replace(federation, train_texts=texts_of(model, hidden, config))
    first = start(config, federation, arm)
    trained = train_watched(config, federation, arm, first, TrainingObserver())
    media = federation.train_features[arm.method.feature_kind].rows(chosen[:, 0], np.zeros_like(chosen[:, 0]))
    asked = [
        (one, (hidden.questions or ())[row]) for one, row in zip(media.split(1), chosen[:, 0].tolist(), strict=True)
    ]

    def bits(state: State, audience: Audience) -> tuple[float, ...]:
        context = _context(arm, state, audience, settings.client_id)
        return tuple(
            exposure(model.likelihoods(context, one.to(model.device), question, codes), secret)
            for (one, question), secret in zip(asked, secrets.tolist(), strict=True)
        )

    guarantees = arm.plan.guarantees()
    return tuple(
        Exposure(
            audience=str(audience),
            before=bits(first, audience),
            after=bits(trained, audience),
            most=math.log2(len(codes)),
            claim=guarantees[audience].statement(),
        )
        for audience in seen
    )


def exposure(likelihoods: Float[Tensor, " r"], secret: int) -> float:
    """Return log2 r less log2 of the secret's rank; equals count as likelier than it.

    >>> import torch
    >>> exposure(torch.tensor([-3.0, -1.0, -2.0, -4.0]), 2)
    1.0
    """
    rank = int((likelihoods >= likelihoods[secret]).sum())
    return math.log2(len(likelihoods)) - math.log2(rank)


def _codes(num_digits: int) -> tuple[str, ...]:
    """Return all answers that a secret could be."""
    return tuple(ANSWER.format(" ".join(f"{code:0{num_digits}d}")) for code in range(10**num_digits))


def _places(config: RunConfig, federation: Federation, settings: SecretSettings) -> Int[np.ndarray, "s k"]:
    """Draw the training examples that have each secret."""
    clients = federation.partition.clients
    if not 0 <= settings.client_id < len(clients):
        raise ConfigError(f"client_id must lie in 0 to {len(clients) - 1}, got {settings.client_id}.")
    own, needed = clients[settings.client_id].indices["train"], settings.num_secrets * settings.num_repeats
    if needed > len(own):
        raise ConfigError(
            f"{settings.num_secrets} secrets, each in {counted(settings.num_repeats, 'example')}, need {needed} "
            f"training examples, and client {settings.client_id} has {len(own)}. Use fewer."
        )
    drawn = stream(config.seed, "secret places").permutation(own)[:needed]
    return drawn.reshape(settings.num_secrets, settings.num_repeats)


def _context(arm: Arm, state: State, audience: Audience, client_id: int) -> Float[Tensor, "t e"]:
    """Return the context that an audience holds."""
    method: Any = arm.method
    context = method.shared_context(state.shared) if audience is Audience.PUBLIC else (
        method.context(state.shared, state.personal[client_id])
    )  # fmt: skip
    assert context is not None, "an audience with a claim sees something"
    return context
