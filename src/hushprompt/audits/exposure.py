"""Does a prompt tell a secret? Random digits in a training answer, and their rank among all digits that could be there.

Source: Carlini, Liu, Erlingsson, Kos, Song 2019, "The Secret Sharer" (arXiv:1802.08232), section 4: exposure is
log2 |R| - log2 rank, with R the answers that the digits could have made, in the order of their likelihood. A prompt
that never saw the secret has 1.44 bits on average, and log2 |R| says that it is the likeliest of all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import gamma
from torch import Tensor

from hushprompt import checks
from hushprompt.audits.world import World, audiences, start
from hushprompt.errors import ConfigError
from hushprompt.privacy.config import Audience
from hushprompt.prompts.generative_model import GenerativeModel
from hushprompt.runs.arm import Arm
from hushprompt.runs.state import State
from hushprompt.seeding import stream
from hushprompt.words import counted

ANSWER = "the code is {}"
"""What a training answer is replaced by; the digits stand apart, so that each is a token."""


@dataclass(frozen=True, kw_only=True)
class SecretSettings:
    """What is hidden."""

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

    def check_fits(self, num_examples: int, client_id: int) -> None:
        """Raise ConfigError unless a client has an example for every place."""
        needed = self.num_secrets * self.num_repeats
        if needed > num_examples:
            raise ConfigError(
                f"{self.num_secrets} secrets, each in {counted(self.num_repeats, 'example')}, need {needed} "
                f"training examples, and client {client_id} has {num_examples}. Use fewer."
            )


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """How much an audience's prompt tells of the secrets, in bits, one a secret. It is no bound on epsilon."""

    audience: str
    before: tuple[float, ...]
    """Of the prompt that training starts from, which knows nothing."""
    after: tuple[float, ...]
    """Of the trained prompt."""
    most: float
    """log2 |R|: a secret that is the likeliest of all."""
    num_repeats: int
    """Training examples that had each secret."""
    p_value: float
    """Chance that a prompt which never saw the secrets has as many bits in sum."""
    claim: str
    """What the run claims for this audience."""


def train_secrets(world: World, arm: Arm, settings: SecretSettings) -> dict[str, Tensor]:
    """Train once with secrets in some of the client's answers, and rank each among all answers of its form.

    Args:
        world: whose candidates are the client's examples, with questions.
        arm: method and privacy plan.
        settings: what is hidden.

    Returns:
        Bits [s] of each audience's prompt before and after, by name.
    """
    seed, codes = world.config.seed, _codes(settings.num_digits)
    secrets = stream(seed, "secret digits").integers(len(codes), size=settings.num_secrets)
    places = _places(world, settings)
    told = world.with_answers(places.ravel(), [codes[one] for one in np.repeat(secrets, settings.num_repeats)])
    state, _ = told.train(arm, np.ones(places.size, dtype=bool), seed)
    first = start(world.config, world.federation, arm)
    return {
        f"{audience}.{when}": _bits(told, arm, which, audience, secrets, codes)
        for audience in audiences(arm)
        if audience is not Audience.SERVER
        for when, which in (("before", first), ("after", state))
    }


def _bits(
    told: World, arm: Arm, state: State, audience: Audience, secrets: Int[np.ndarray, " s"], codes: Sequence[str]
) -> Float[Tensor, " s"]:
    """Ask for each secret at the first example that has it."""
    context, model = told.context(arm, state, audience), told.federation.model
    assert isinstance(model, GenerativeModel), "questions are answered"
    asked = told.examples.of(torch.arange(len(secrets)) * (len(told.candidates.indices) // len(secrets)))
    assert asked.texts is not None, "examples have questions"
    rows = zip(asked.image_features.split(1), asked.texts.questions.split(1), secrets.tolist(), strict=True)
    return torch.tensor(
        [exposure(model.likelihoods(context, one, question, codes), secret) for one, question, secret in rows],
        dtype=torch.float64,
    )


def exposures(kept: Mapping[str, Tensor], arm: Arm, settings: SecretSettings) -> dict[Audience, Exposure]:
    """Set what `train_secrets` found beside the claims."""
    guarantees, found = arm.plan.guarantees(), dict[Audience, Exposure]()
    for audience in (one for one in audiences(arm) if one is not Audience.SERVER):
        before, after = (tuple(kept[f"{audience}.{when}"].tolist()) for when in ("before", "after"))
        found[audience] = Exposure(
            audience=str(audience),
            before=before,
            after=after,
            most=settings.num_digits * math.log2(10),
            num_repeats=settings.num_repeats,
            p_value=p_value(after),
            claim=guarantees[audience].statement(),
        )
    return found


def exposure(likelihoods: Float[Tensor, " r"], secret: int) -> float:
    """Return log2 r less log2 of the secret's rank; equals count as likelier than it.

    >>> exposure(torch.tensor([-3.0, -1.0, -2.0, -4.0]), 2)
    1.0
    """
    rank = int((likelihoods >= likelihoods[secret]).sum())
    return math.log2(len(likelihoods)) - math.log2(rank)


def p_value(bits: Sequence[float]) -> float:
    """Return the chance of so many bits in sum, or more, where no secret was ever seen.

    A secret is drawn uniformly, so rank / |R| is a p-value; several are combined as by Fisher (1925).

    >>> round(p_value([10.0]) * 2**10, 6), p_value([0.0, 0.0])
    (1.0, 1.0)
    """
    return float(gamma.sf(sum(bits) * math.log(2), len(bits)))


def _codes(num_digits: int) -> tuple[str, ...]:
    """Return all answers that a secret could be."""
    return tuple(ANSWER.format(" ".join(f"{code:0{num_digits}d}")) for code in range(10**num_digits))


def _places(world: World, settings: SecretSettings) -> Int[np.ndarray, "s k"]:
    """Draw the candidates that have each secret."""
    own, needed = world.candidates, settings.num_secrets * settings.num_repeats
    settings.check_fits(len(own.indices), own.client_id)
    drawn = stream(world.config.seed, "secret places").permutation(len(own.indices))[:needed]
    return drawn.reshape(settings.num_secrets, settings.num_repeats)
