"""All attacks on all audiences: from what shadow federations say to the table of an audit.

Every federation is attacked in turn, with all others as shadow models (leave one out). Federations share shadow models
and candidates, which the intervals in `metrics` allow for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from hushprompt.audits import metrics, scores
from hushprompt.audits.metrics import AttackResult
from hushprompt.audits.shadow_mlp import shadow_mlp
from hushprompt.audits.shadows import Shadows
from hushprompt.errors import ConfigError
from hushprompt.privacy.config import Audience
from hushprompt.seeding import stream

Attack = Literal["lira", "rmia", "loss", "shadow_mlp", "gradient_cosine"]
ATTACKS: tuple[Attack, ...] = ("lira", "rmia", "loss", "shadow_mlp", "gradient_cosine")
MIN_SHADOWS = 4
"""One federation is attacked with three others, the fewest that give means and spreads."""
PROMPT = {Audience.PUBLIC: "global prompt", Audience.PERSONAL: "personal prompt"}
RELEASES, UPLOADS = "all releases", "every upload"
Score = Callable[[Float[np.ndarray, " m"], Float[np.ndarray, "s m"], Bool[np.ndarray, "s m"]], Float[np.ndarray, " m"]]


def attack_all(
    shadows: Shadows, labels: Int[np.ndarray, " m"], population_labels: np.ndarray, attacks: Sequence[str], seed: int
) -> dict[Audience, list[AttackResult]]:
    """Attack what every audience sees.

    Args:
        shadows: of one arm.
        labels: [m] the candidates' classes.
        population_labels: [p] classes of the images that nobody trains on.
        attacks: names out of `ATTACKS`.
        seed: root of the attacks' own randomness.

    Returns:
        Results by audience. The transcript counts as the public's, and every holder of a personal prompt sees it too;
        the server is attacked where it sees the client's own releases.

    Raises:
        ConfigError: there are too few federations.
    """
    if len(shadows.is_in) < MIN_SHADOWS:
        raise ConfigError(f"--num-shadows must be at least {MIN_SHADOWS}, got {len(shadows.is_in)}. 64 are usual.")
    results: dict[Audience, list[AttackResult]] = {}
    for audience, log_probs in shadows.log_probs.items():
        found = results.setdefault(audience, [])
        population = shadows.population[audience]
        for attack in attacks:
            for name, values in _scores(
                attack, log_probs, labels, population, population_labels, shadows.is_in, seed, str(audience)
            ).items():
                rng = stream(seed, "bootstrap", str(audience), name)
                found.append(metrics.measure(name, PROMPT[audience], values, shadows.is_in, rng))
    if "gradient_cosine" not in attacks:
        return results
    if shadows.transcript is not None:
        everyone = _on_releases(shadows.transcript, shadows.is_in, RELEASES, stream(seed, "bootstrap", "transcript"))
        for found in results.values():
            found.append(everyone)
    if shadows.uploads is not None:
        rng = stream(seed, "bootstrap", "uploads")
        results[Audience.SERVER] = [_on_releases(shadows.uploads, shadows.is_in, UPLOADS, rng)]
    return results


def leave_one_out(
    score: Score, values: Float[np.ndarray, "s m"], is_in: Bool[np.ndarray, "s m"]
) -> Float[np.ndarray, "s m"]:
    """Score every model's candidates with all other models as its shadows."""
    models = np.arange(len(values))
    return np.stack([score(values[k], values[models != k], is_in[models != k]) for k in models])


def _on_releases(
    projections: Float[np.ndarray, "s m"], is_in: Bool[np.ndarray, "s m"], sees: str, rng: np.random.Generator
) -> AttackResult:
    """Measure the gradient-cosine attack on a transcript."""
    values = leave_one_out(scores.standardized, projections, is_in)
    return metrics.measure("gradient cosine", sees, values, is_in, rng)


def _scores(
    attack: str,
    log_probs: Float[np.ndarray, "s m c"],
    labels: Int[np.ndarray, " m"],
    population: Float[np.ndarray, "s p c"],
    population_labels: np.ndarray,
    is_in: Bool[np.ndarray, "s m"],
    seed: int,
    audience: str,
) -> dict[str, Float[np.ndarray, "s m"]]:
    """Return the scores of one attack on one prompt, by the name that the table shows."""
    if attack == "lira":
        phi = scores.confidence_logits(log_probs, labels)
        return {
            "LiRA online": leave_one_out(scores.lira_online, phi, is_in),
            "LiRA offline": leave_one_out(scores.lira_offline, phi, is_in),
        }
    if attack == "rmia":
        return {"RMIA offline": rmia_scores(log_probs, labels, population, population_labels, is_in)}
    if attack == "loss":
        return {"loss": scores.true_log_probs(log_probs, labels)}
    if attack == "shadow_mlp":
        rng = stream(seed, "shadow mlp", audience)
        return {"shadow MLP": shadow_mlp(log_probs, labels, is_in, rng)}
    return {}


def rmia_scores(
    log_probs: Float[np.ndarray, "s m c"],
    labels: Int[np.ndarray, " m"],
    population: Float[np.ndarray, "s p c"],
    population_labels: np.ndarray,
    is_in: Bool[np.ndarray, "s m"],
) -> Float[np.ndarray, "s m"]:
    """Attack every model by RMIA; `a` is tuned on the next model, whose members its auditor knows."""
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

    found = []
    for model in range(len(is_in)):
        paired = (model + 1) % len(is_in)
        best = scores.tune_rmia(lambda a, p=paired, k=model: metrics.auc(attacked(p, k, a), is_in[p]))  # type: ignore[misc]
        found.append(attacked(model, model, best))
    return np.stack(found)
