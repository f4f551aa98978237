"""Metrics of an attack: the whole ROC curve, read at low false-positive rates.

Source: Carlini et al. 2022 (arXiv:2112.03570), section 2: an attack that finds a few members for sure is a breach, and
an average over all examples hides it. A false-positive rate below 1 / (number of non-members) cannot be seen, so no
number is given for it. Several candidates share a model and several models share a candidate, so intervals come from
resampling both: Owen 2007 (arXiv:0712.1111), the pigeonhole bootstrap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from hushprompt import checks
from hushprompt.audits.mechanism_audit import AuditResult
from hushprompt.errors import ConfigError

FALSE_POSITIVE_RATES = (0.01, 0.001)
"""False-positive rates at which the true-positive rate is read."""
NUM_RESAMPLES = 1000
"""Bootstrap resamples of every interval."""
CHUNK = 64
"""Resamples worked on at once."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and its 95 % bootstrap interval; None where it cannot be resolved."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class AttackResult:
    """Result of one attack over all attacked models."""

    attack: str
    sees: str
    """The view that the attacker used."""
    num_targets: int
    """Models attacked."""
    num_members: int
    """Pairs of a model and an example that it trained on."""
    num_non_members: int
    """Pairs of a model and an example that it did not train on."""
    auc: Interval
    tpr: dict[str, Interval]
    """True-positive rate by false-positive rate, such as "0.01"; value None: below 1 / num_non_members."""
    roc: dict[str, list[float]]
    """The curve, `fpr` and `tpr`, thinned to points that a logarithmic plot can show."""
    bound: AuditResult | None = None
    """Lower bound on epsilon from guesses by these scores, together with those of the audience's other attacks; None
    where the scores owe something to the coins."""


def roc_curve(
    scores: Float[np.ndarray, " n"], is_in: Bool[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " t"], Float[np.ndarray, " t"]]:
    """Return false- and true-positive rates of every threshold, from (0, 0) to (1, 1); equal scores share a step.

    Raises:
        ConfigError: there are no members or no non-members.
    """
    if is_in.all() or not is_in.any():
        raise ConfigError("An attack needs members and non-members; all examples were on one side.")
    order, ends = _ranked(scores)
    weights = np.ones((1, len(scores)))
    fpr, tpr = _curves(weights[:, order], is_in[order], ends)
    return fpr[0], tpr[0]


def auc(scores: Float[np.ndarray, " n"], is_in: Bool[np.ndarray, " n"]) -> float:
    """Return the probability that a member's score is above a non-member's, ties counting half.

    >>> auc(np.array([0.9, 0.8, 0.3, 0.1]), np.array([True, False, True, False]))
    0.75
    """
    fpr, tpr = roc_curve(scores, is_in)
    return float(np.trapezoid(tpr, fpr))


def tpr_at(scores: Float[np.ndarray, " n"], is_in: Bool[np.ndarray, " n"], fpr: float) -> float | None:
    """Return the largest true-positive rate at a false-positive rate of at most `fpr`.

    None if `fpr` is below 1 / (number of non-members): one non-member more or less would decide it.

    >>> tpr_at(np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, False, True, False]), 0.5)
    1.0
    >>> tpr_at(np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, False, True, False]), 0.01) is None
    True
    """
    checks.in_range(0, 1, fpr=fpr)
    if not is_resolvable(int((~is_in).sum()), fpr):
        return None
    curve_fpr, curve_tpr = roc_curve(scores, is_in)
    return float(_read(curve_fpr[None], curve_tpr[None], fpr)[0])


def is_resolvable(num_non_members: int, fpr: float) -> bool:
    """Whether a false-positive rate of `fpr` is at least one non-member."""
    return num_non_members * fpr >= 1 - 1e-9


def measure(
    attack: str,
    sees: str,
    scores: Float[np.ndarray, "s m"],
    is_in: Bool[np.ndarray, "s m"],
    rng: np.random.Generator,
    num_resamples: int = NUM_RESAMPLES,
) -> AttackResult:
    """Measure an attack's scores of `m` candidates under each of `s` attacked models.

    Args:
        attack: name of the attack.
        sees: what it looked at.
        scores: [s, m] larger for candidates that look like members.
        is_in: [s, m] the truth.
        rng: stream of the resampling.
        num_resamples: bootstrap resamples.
    """
    flat, truth = scores.ravel(), is_in.ravel()
    fpr, tpr = roc_curve(flat, truth)
    areas, rates = _resampled(scores, is_in, rng, num_resamples)
    num_out = int((~truth).sum())
    at = {
        f"{point:g}": _interval(tpr_at(flat, truth, point), rates[index])
        if is_resolvable(num_out, point)
        else Interval(value=None, low=None, high=None)
        for index, point in enumerate(FALSE_POSITIVE_RATES)
    }
    return AttackResult(
        attack=attack,
        sees=sees,
        num_targets=len(scores),
        num_members=int(truth.sum()),
        num_non_members=num_out,
        auc=_interval(float(np.trapezoid(tpr, fpr)), areas),
        tpr=at,
        roc=_thinned(fpr, tpr),
    )


def _resampled(
    scores: Float[np.ndarray, "s m"], is_in: Bool[np.ndarray, "s m"], rng: np.random.Generator, num_resamples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return [b] areas and [f, b] true-positive rates over resampled models and candidates."""
    num_models, num_candidates = scores.shape
    order, ends = _ranked(scores.ravel())
    truth = is_in.ravel()[order]
    rows, columns = order // num_candidates, order % num_candidates
    areas, rates = [], []
    for start in range(0, num_resamples, CHUNK):
        count = min(CHUNK, num_resamples - start)
        by_model = _multinomial(rng, count, num_models)
        by_candidate = _multinomial(rng, count, num_candidates)
        fpr, tpr = _curves(by_model[:, rows] * by_candidate[:, columns], truth, ends)
        areas.append(np.trapezoid(tpr, fpr, axis=1))
        rates.append(np.stack([_read(fpr, tpr, point) for point in FALSE_POSITIVE_RATES]))
    return np.concatenate(areas), np.concatenate(rates, axis=1)


def _multinomial(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Return [count, size] how often each item is drawn in each resample; a single item cannot be resampled."""
    if size == 1:
        return np.ones((count, 1))
    return rng.multinomial(size, np.full(size, 1 / size), size=count).astype(float)


def _ranked(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the order from the largest score down, and where each run of equal scores ends."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    return order, ends


def _curves(weights: np.ndarray, truth: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return [b, t] false- and true-positive rates of weighted, ranked examples, from (0, 0) on."""
    found = np.cumsum(weights * truth, axis=1)[:, ends]
    wrong = np.cumsum(weights * ~truth, axis=1)[:, ends]
    start = np.zeros((len(weights), 1))
    fpr = np.concatenate([start, wrong / np.maximum(wrong[:, -1:], 1e-12)], axis=1)
    return fpr, np.concatenate([start, found / np.maximum(found[:, -1:], 1e-12)], axis=1)


def _read(fpr: np.ndarray, tpr: np.ndarray, point: float) -> np.ndarray:
    """Return [b] the largest true-positive rate at a false-positive rate of at most `point`."""
    allowed = fpr <= point * (1 + 1e-9)
    return np.where(allowed, tpr, 0.0).max(axis=1)


def _interval(value: float | None, resampled: np.ndarray) -> Interval:
    """Return an estimate with the middle 95 % of its resamples."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(value=value, low=float(low), high=float(high))


def _thinned(fpr: np.ndarray, tpr: np.ndarray) -> dict[str, list[float]]:
    """Keep about forty points a decade of the false-positive rate, and both ends."""
    floor = fpr[fpr > 0].min()
    step = np.floor(40 * np.log10(np.maximum(fpr, floor / 10)))
    last = np.append(np.diff(step) != 0, True)
    last[0] = True
    return {"fpr": [round(float(x), 7) for x in fpr[last]], "tpr": [round(float(y), 7) for y in tpr[last]]}
