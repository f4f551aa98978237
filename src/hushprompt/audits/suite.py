"""All attacks on all audiences: from what shadow federations say to the table of an audit.

Every federation is attacked in turn, with all others as shadow models (leave one out). Federations share shadow models
and candidates, which the intervals in `metrics` allow for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from hushprompt.audits import metrics, scores
from hushprompt.audits.lower_bounds import CONFIDENCE
from hushprompt.audits.mechanism_audit import Bound, best_guesses
from hushprompt.audits.metrics import AttackResult
from hushprompt.audits.pipra import pipra
from hushprompt.audits.shadow_mlp import shadow_mlp
from hushprompt.audits.shadows import Shadows
from hushprompt.errors import ConfigError
from hushprompt.privacy.config import Audience
from hushprompt.seeding import stream

Attack = Literal[
    "lira", "rmia", "loss", "shadow_mlp", "pipra", "gradient_cosine", "class_row", "likelihood", "crafted_prompt"
]
ATTACKS: tuple[Attack, ...] = get_args(Attack)
MIN_SHADOWS = 4
"""One federation is attacked with three others, the fewest that give means and spreads."""
PROMPT = {Audience.PUBLIC: "global prompt", Audience.PERSONAL: "personal prompt"}
RELEASES, UPLOADS = "all releases", "all that it received"
MOST_COINS = 20_000
"""Coins that a bound is drawn from, of the last federations: more cost much and show little."""
Score = Callable[[Float[np.ndarray, " m"], Float[np.ndarray, "s m"], Bool[np.ndarray, "s m"]], Float[np.ndarray, " m"]]


class Scored(NamedTuple):
    """What one attack says."""

    attack: str
    sees: str
    values: Float[np.ndarray, "s m"]
    """Of all federations; each may owe something to the coins of all others."""
    fresh: Float[np.ndarray, "t m"] | None
    """Of the last t federations, without the help of their coins, so that guesses about these bound epsilon; None:
    there are none such."""
    is_ratio: bool = False
    """Whether they are log-likelihood ratios."""


class Audited(NamedTuple):
    """What lower bounds are about."""

    delta: float
    bound: Bound
    """Theorem that holds for the mechanism."""


@dataclass(frozen=True)
class Attacker:
    """One audience's shadow federations, and what everybody knows."""

    shadows: Shadows
    labels: Int[np.ndarray, " m"]
    population_labels: np.ndarray
    attacks: Sequence[str]
    seed: int
    audience: Audience

    def prompt(self) -> Iterator[Scored]:
        """Score what the audience's prompt says; nothing where it has none of its own."""
        log_probs, is_in = self.shadows.log_probs.get(self.audience), self.shadows.is_in
        if log_probs is None:
            return
        sees, population = PROMPT[self.audience], self.shadows.population[self.audience]
        if "lira" in self.attacks:
            phi = scores.confidence_logits(log_probs, self.labels)
            yield by_shadows("LiRA online", sees, scores.lira_online, phi, is_in)
            yield by_shadows("LiRA offline", sees, scores.lira_offline, phi, is_in)
        if "rmia" in self.attacks:
            found = rmia_scores(log_probs, self.labels, population, self.population_labels, is_in)
            yield Scored("RMIA offline", sees, found, None)
        if "loss" in self.attacks:
            said = scores.true_log_probs(log_probs, self.labels)
            yield Scored("loss", sees, said, said)
        if "shadow_mlp" in self.attacks:
            rng = stream(self.seed, "shadow mlp", str(self.audience))
            yield Scored("shadow MLP", sees, shadow_mlp(log_probs, self.labels, is_in, rng), None)
        if "pipra" in self.attacks and self.audience in self.shadows.texts and self.shadows.images is not None:
            rng, classes = (
                stream(self.seed, "pipra", str(self.audience)),
                np.unique(self.labels, return_inverse=True)[1],
            )
            found = pipra(self.shadows.texts[self.audience], self.shadows.images, classes, is_in, rng)
            yield Scored("PIPRA", sees, found, None)
        if "class_row" in self.attacks and self.shadows.class_rows is not None:
            yield by_shadows("class row", sees, scores.standardized, self.shadows.class_rows, is_in)

    def releases(self) -> Iterator[Scored]:
        """Score all that was released on the way."""
        is_server = self.audience is Audience.SERVER
        seen, sees = (self.shadows.uploads, UPLOADS) if is_server else (self.shadows.transcript, RELEASES)
        if "gradient_cosine" in self.attacks and seen is not None:
            yield by_shadows("gradient cosine", sees, scores.standardized, seen, self.shadows.is_in)
        ratios = self.shadows.ratios.get(self.audience)
        if "likelihood" in self.attacks and ratios is not None:
            yield Scored("likelihood", sees, ratios, ratios, is_ratio=True)


def attack_all(
    shadows: Shadows,
    labels: Int[np.ndarray, " m"],
    population_labels: np.ndarray,
    attacks: Sequence[str],
    seed: int,
    claim: Audited | None = None,
    groups: Int[np.ndarray, " m"] | None = None,
) -> dict[Audience, list[AttackResult]]:
    """Attack what every audience sees.

    Args:
        shadows: of one arm.
        labels: [m] the candidates' classes.
        population_labels: [p] classes of the images that nobody trains on.
        attacks: names out of `ATTACKS`; those that the method publishes nothing for are left out.
        seed: root of the attacks' own randomness.
        claim: what lower bounds from the attacks' guesses are about; None: no bounds.
        groups: [m] number of each candidate's group, where coins are about groups: attacks look at examples, and what
            they say of a group is their mean.

    Returns:
        Results by audience. The transcript counts as the public's, and every holder of a personal prompt sees it too;
        the server is attacked where it sees the client's own releases.

    Raises:
        ConfigError: there are too few federations.
    """
    if len(shadows.is_in) < MIN_SHADOWS:
        raise ConfigError(f"--num-shadows must be at least {MIN_SHADOWS}, got {len(shadows.is_in)}. 64 are usual.")
    results, coins = {}, shadows.is_in
    if groups is not None:
        shadows = dataclasses.replace(shadows, is_in=coins[:, groups])
    for audience in (one for one in Audience if one is Audience.SERVER or one in shadows.log_probs):
        attacker = Attacker(shadows, labels, population_labels, attacks, seed, audience)
        found = [by_group(one, groups) for one in (*attacker.prompt(), *attacker.releases())]
        num_bounds = sum(one.fresh is not None for one in found)
        measured = [_measured(one, coins, audience, seed, claim, num_bounds) for one in found]
        if measured or audience is not Audience.SERVER:
            results[audience] = measured
    return results


def by_group(scored: Scored, groups: Int[np.ndarray, " m"] | None) -> Scored:
    """Return what an attack says of groups, the mean over the examples of each; ratios are of groups already."""
    if groups is None or scored.is_ratio:
        return scored
    sizes = np.bincount(groups)

    def means(rows: Float[np.ndarray, "s m"]) -> Float[np.ndarray, "s k"]:
        return np.stack([np.bincount(groups, row) for row in rows]) / sizes

    fresh = None if scored.fresh is None else means(scored.fresh)
    return scored._replace(values=means(scored.values), fresh=fresh)


def leave_one_out(
    score: Score, values: Float[np.ndarray, "s m"], is_in: Bool[np.ndarray, "s m"]
) -> Float[np.ndarray, "s m"]:
    """Score every model's candidates with all other models as its shadows."""
    models = np.arange(len(values))
    return np.stack([score(values[k], values[models != k], is_in[models != k]) for k in models])


def by_shadows(
    attack: str, sees: str, score: Score, values: Float[np.ndarray, "s m"], is_in: Bool[np.ndarray, "s m"]
) -> Scored:
    """Score by shadow models: all others for the attack, the first half for fresh scores of the second."""
    half = len(values) // 2
    fresh = np.stack([score(each, values[:half], is_in[:half]) for each in values[half:]])
    return Scored(attack, sees, leave_one_out(score, values, is_in), fresh)


def _measured(
    scored: Scored,
    is_in: Bool[np.ndarray, "s m"],
    audience: Audience,
    seed: int,
    claim: Audited | None,
    num_bounds: int,
) -> AttackResult:
    """Measure an attack, and bound epsilon by its guesses at its share of the risk."""
    rng = stream(seed, "bootstrap", *_purpose(scored, audience))
    result = metrics.measure(scored.attack, scored.sees, scored.values, is_in, rng)
    if claim is None or scored.fresh is None:
        return result
    num_used = max(1, MOST_COINS // is_in.shape[1])
    values, coins = scored.fresh[-num_used:], is_in[-len(scored.fresh) :][-num_used:]
    bound = best_guesses(
        values.ravel(),
        coins.ravel(),
        delta=claim.delta,
        confidence=1 - (1 - CONFIDENCE) / num_bounds,
        bound=claim.bound,
        is_ratio=scored.is_ratio,
    )
    return dataclasses.replace(result, bound=dataclasses.replace(bound, confidence=CONFIDENCE))


def _purpose(scored: Scored, audience: Audience) -> tuple[str, ...]:
    """Return whose resampling it is; the transcript is resampled once, whoever reads it."""
    if scored.attack == "gradient cosine":
        return ("uploads" if scored.sees == UPLOADS else "transcript",)
    return (str(audience), scored.attack)


def rmia_scores(
    log_probs: Float[np.ndarray, "s m c"],
    labels: Int[np.ndarray, " m"],
    population: Float[np.ndarray, "s p c"],
    population_labels: np.ndarray,
    is_in: Bool[np.ndarray, "s m"],
) -> Float[np.ndarray, "s m"]:
    """Attack every model by RMIA; `a` is tuned on the next model with members and others, which its auditor knows."""
    of_candidates = np.exp(scores.true_log_probs(log_probs, labels))
    of_population = np.exp(scores.true_log_probs(population, population_labels))

    def attacked(model: int, without: int, a: float) -> Float[np.ndarray, " m"]:
        rest = np.setdiff1d(np.arange(len(is_in)), [model, without])
        return scores.rmia_offline(
            of_candidates[model],
            of_candidates[rest],
            is_in[rest],
            of_population[model],
            of_population[rest],
            a=a,
        )

    found, has_both = [], np.array([row.any() and not row.all() for row in is_in])
    for model in range(len(is_in)):
        later = np.roll(np.arange(len(is_in)), -model - 1)[:-1]
        paired = int(later[np.argmax(has_both[later])])
        best = scores.tune_rmia(lambda a, p=paired, k=model: metrics.auc(attacked(p, k, a), is_in[p]))  # type: ignore[misc]
        found.append(attacked(model, model, best))
    return np.stack(found)
