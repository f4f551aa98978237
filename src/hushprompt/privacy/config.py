"""The `privacy` section of a run's config, and the words in which a plan speaks: channels and audiences."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from hushprompt import checks
from hushprompt.errors import PrivacyError
from hushprompt.registry import SECTIONS

GROUP_WORD = re.compile(r"[^\W\d_][\w '-]{0,39}")
"""A noun, or two of which the second belongs to the first."""


class Channel(StrEnum):
    """The two ways in which data can enter a prompt."""

    LOCAL = "local"
    """Into the client's own personal prompt; noise is added on the client."""
    GLOBAL = "global"
    """Into the prompt that all share; noise is added to the sum over clients, or by each client to its own."""


class Audience(StrEnum):
    """Who looks at what; each has its own guarantee."""

    PUBLIC = "public"
    """Sees the global prompt after every round. Other clients see the same."""
    PERSONAL = "personal"
    """Holds one client's personal prompt, and sees what the public sees."""
    SERVER = "server"
    """Receives what clients send; has a guarantee only where clients add the noise themselves, or shares of it."""


SHARES_ONLY: Mapping[str, Any] = {"max_colluding": 1, "max_dropouts": 0, "rescue": False}
"""Settings of noise shares, with their defaults; nothing else looks at them."""
GROUPS_ONLY = ("group_word", "max_group_examples")
"""Settings of groups; where they are not the unit nothing looks at them."""


@SECTIONS.register("privacy")
@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """The `privacy` section: a budget or the noise itself, and the clip norms."""

    epsilon: float | None = 8.0
    """Target epsilon of `audience` over the whole run; inf clips and adds no noise. Not with noise multipliers."""
    delta: float = 1e-5
    """Target delta; must be below 0.1 and below 1 / (examples of the largest client)."""
    audience: Audience = Audience.PERSONAL
    """Whom the target epsilon is for: "personal" (holder of a personal prompt), "public" (global prompt only), or
    "server" (what clients send; needs noise_at = "shares" or "client")."""
    noise_at: Literal["auto", "server", "client", "shares"] = "auto"
    """Where the global noise is added: "server", once to the sum over clients, which trusts the server; "shares", a
    share by every client to its own sum, of which a server learns the sum over clients alone, by secure aggregation,
    and which costs little accuracy; "client", by every client in full to its own sum, which protects from the server
    too and costs much; or "auto": "server" in a simulation, in a federation "shares" where the run allows it."""
    max_colluding: int = 1
    """With noise_at = "shares": clients that may tell the server all they know; at least 1. Their own noise does not
    count for the others."""
    max_dropouts: int = 0
    """With noise_at = "shares": clients of a cohort that may be gone from a step. A step with fewer left moves nothing,
    and is charged."""
    rescue: bool = False
    """With noise_at = "shares": whether a step survives the loss of up to max_dropouts clients in it, which takes a
    second message from all others, and more noise."""
    local_share: float = 0.5
    """Share of the budget (of 1/z^2) that the local release gets where a method makes both; in (0, 1)."""
    clip_norm_local: float = 1.0
    """L2 bound of one example's contribution to a client's local sum, in gradient units."""
    clip_norm_global: float = 1.0
    """L2 bound of one example's contribution to the sum over clients, in gradient units."""
    adaptive_quantile: float | None = None
    """Share of contributions that should stay unclipped: clip norms then follow this quantile, from noisy counts that
    the budget pays for (Andrew et al. 2021). Left out: clip norms stay as given."""
    adaptive_rate: float = 0.2
    """Largest relative change of a clip norm in one step."""
    adaptive_share: float = 0.05
    """Share of each release's budget (of 1/z^2) that its count gets, in (0, 1)."""
    noise_source: Literal["auto", "seeded", "secure"] = "auto"
    """Where noise and private batches come from: "seeded" (the run's seed: a repeatable simulation, not a release),
    "secure" (the operating system's cryptographic generator, on a grid: fit for a release, never the same twice), or
    "auto": secure for your own data and in a federation, seeded for published benchmarks and built-in data."""
    max_epsilon: float | None = None
    """Training ends before the epsilon of `audience` would exceed this, also across resumes and retries; left out: the
    target epsilon, where one is set."""
    noise_multiplier_local: float | None = None
    """Noise std over clip norm of the local release, instead of `epsilon`."""
    noise_multiplier_global: float | None = None
    """Noise std over clip norm of the global release, instead of `epsilon`."""
    rounding: float = 1e-5
    """How far rounding may move one clipped gradient when others join or leave its batch, over the clip norm. Noise is
    made larger by (examples of the largest client) times this; checked on the frozen model before training. 0: not
    accounted for."""
    neighboring_relation: Literal["add_remove", "replace_one"] = "add_remove"
    """What neighboring data sets differ by: one example more or less, or one example exchanged."""
    privacy_unit: Literal["example", "group", "client"] = "example"
    """Who is protected: one (image, label) pair of one client; all that one client has of one group, such as a patient,
    which the data name; or all data of one client (the global prompt only)."""
    group_word: str = "group"
    """What a group is, in statements: "patient", or with what it has, "patient's images"."""
    max_group_examples: int = 16
    """Most examples of a group that a step takes gradients of: of a larger group a random part, another one each step.
    It bounds memory and time, and the margin for rounding grows with it."""

    def __post_init__(self) -> None:
        checks.clip_norms(clip_norm_local=self.clip_norm_local, clip_norm_global=self.clip_norm_global)
        checks.delta(delta=self.delta)
        checks.non_negative(rounding=self.rounding)
        checks.finite(rounding=self.rounding)
        if not 0 < self.local_share < 1:
            raise PrivacyError(f"local_share must lie in (0, 1), got {self.local_share}.")
        checks.one_of(Audience, audience=self.audience)
        object.__setattr__(self, "audience", Audience(self.audience))  # from Python it may be a word
        if self.audience is Audience.SERVER and self.noise_at in ("auto", "server"):
            raise PrivacyError(
                'privacy.audience = "server" needs privacy.noise_at = "shares" or "client": a server that adds the '
                "noise itself sees every client's sum without it."
            )
        self._check_shares()
        explicit = [self.noise_multiplier_local, self.noise_multiplier_global]
        if self.epsilon is None:
            if any(z is None for z in explicit):
                raise PrivacyError("Set privacy.epsilon, or both noise_multiplier_local and noise_multiplier_global.")
            for name, z in zip(("noise_multiplier_local", "noise_multiplier_global"), explicit, strict=True):
                assert z is not None
                checks.non_negative(**{name: z})
                checks.finite(**{name: z})
        else:
            if any(z is not None for z in explicit):
                raise PrivacyError(
                    "privacy.epsilon and noise multipliers exclude each other: the noise follows from epsilon. "
                    'Keep one; to give the noise yourself, set privacy.epsilon="none".'
                )
            checks.positive(epsilon=self.epsilon)
        checks.positive(adaptive_rate=self.adaptive_rate, max_group_examples=self.max_group_examples)
        if not GROUP_WORD.fullmatch(self.group_word):
            raise PrivacyError(
                f'privacy.group_word must be a word or a few, such as "patient", got {self.group_word!r}.'
            )
        for name, share in (("quantile", self.adaptive_quantile), ("share", self.adaptive_share)):
            if share is not None and not 0 < share < 1:
                raise PrivacyError(f"adaptive_{name} must lie in (0, 1), got {share}.")
        if self.adaptive_quantile is not None and self.noise_at == "client":
            raise PrivacyError(
                'privacy.adaptive_quantile needs privacy.noise_at = "server" or "shares": clients that add all of the '
                "noise themselves do not count together. Leave adaptive_quantile out."
            )
        if self.max_epsilon is not None:
            checks.positive(max_epsilon=self.max_epsilon)
            checks.finite(max_epsilon=self.max_epsilon)
            if self.epsilon == math.inf:
                raise PrivacyError(
                    f"privacy.max_epsilon = {self.max_epsilon:g} cannot be kept without noise (privacy.epsilon = inf). "
                    "Set a finite privacy.epsilon, or leave max_epsilon out."
                )

    @property
    def unused(self) -> tuple[str, ...]:
        """Settings that nothing looks at; older versions did not have them."""
        of_shares = () if self.noise_at == "shares" else tuple(SHARES_ONLY)
        return of_shares + (() if self.privacy_unit == "group" else GROUPS_ONLY)

    def _check_shares(self) -> None:
        """Refuse settings of noise shares that are out of range, or that nothing would look at."""
        if self.max_colluding < 1 or self.max_dropouts < 0:
            raise PrivacyError(
                f"privacy.max_colluding must be at least 1, got {self.max_colluding}: a client knows its own share of "
                f"the noise. privacy.max_dropouts must be at least 0, got {self.max_dropouts}."
            )
        if self.noise_at in ("auto", "shares"):
            return
        for name, default in SHARES_ONLY.items():
            if getattr(self, name) != default:
                raise PrivacyError(
                    f'privacy.{name} needs privacy.noise_at = "shares", and it is "{self.noise_at}". Leave {name} out.'
                )

    @property
    def unit_word(self) -> str:
        """What a client's size counts and its batches are made of: "example", or the word for a group."""
        return self.group_word.partition("'s ")[0] if self.privacy_unit == "group" else "example"

    @property
    def examples_per_unit(self) -> int:
        """Most examples that a step takes gradients of, of one of what a client's size counts."""
        return self.max_group_examples if self.privacy_unit == "group" else 1
