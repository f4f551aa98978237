"""The tables of the page: results, and the numbers behind every figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from hushprompt.reporting.blocks import missing, sample, table
from hushprompt.reporting.confusions import Confusions
from hushprompt.reporting.figures import NAMES, spent
from hushprompt.reporting.markup import join, tag
from hushprompt.reporting.runs import NEW_SCORES, SCORES, Holdings, Run, number
from hushprompt.reporting.series import Series, mean, spread

NOTHING = "-"
MAX_CONFUSIONS = 12
MAX_CLASSES = 12


def result_table(series: Sequence[Series]) -> Markup:
    """Return mean and spread of every row; the highest mean of a column is set in bold."""
    header = ["method", "local", "neighbor", "harmonic mean", "worst client", "epsilon", "seeds"]
    best = {score: max((mean(s.values(score)) for s in series if s.values(score)), default=0) for score in SCORES}
    rows = [
        [
            join([sample(s), tag("span", s.name)]),
            *(_cell(s, score, is_best=mean(s.values(score)) == best[score]) for score in SCORES),
            _epsilon(s),
            str(len(s.members)),
        ]
        for s in series
    ]
    return table("Mean ± standard deviation over seeds, %", header, rows, is_card=True)


def new_class_table(series: Sequence[Series]) -> Markup | None:
    """Return accuracies on base and new classes; None where all classes are trained on."""
    if not any(s.values("new") for s in series):
        return None
    rows = [[s.name, *(_cell(s, score) for score in NEW_SCORES)] for s in series]
    header = ["method", "base classes", "new classes", "harmonic mean"]
    return table("Base classes among themselves, and classes that nobody trained on among themselves, %", header, rows)


def score_table(series: Sequence[Series], scores: Sequence[str]) -> Markup:
    """Return means and deviations of some scores."""
    rows = [[s.name, *(_cell(s, score) for score in scores), _epsilon(s)] for s in series]
    header = ["row", *(NAMES[score] for score in scores), "epsilon"]
    return table("Mean ± standard deviation over seeds, %", header, rows)


def seed_table(series: Sequence[Series]) -> Markup:
    """Return every seed's local and neighbor accuracy."""
    scores = ("local", "neighbor", "harmonic_mean")
    rows = [
        [f"{s.name}, seed {member.run.seed}", *(_percent(member.result.scores[score]) for score in scores)]
        for s in series
        for member in s.members
    ]
    return table("Accuracy of every seed, %", ["row", "local", "neighbor", "harmonic mean"], rows)


def round_table(series: Sequence[Series]) -> Markup:
    """Return the mean over seeds after every round that was scored."""
    rows = []
    for s in series:
        by_round: dict[int, list[Mapping[str, object]]] = {}
        for member in s.members:
            for record in member.rounds:
                by_round.setdefault(int(record["round_index"]), []).append(record)
        for at, found in sorted(by_round.items()):
            means = [mean([number(record.get(score)) for record in found]) for score in ("local", "neighbor")]
            rows.append([f"{s.name}, round {at}", *map(_percent, means)])
    return table("Mean over seeds, %", ["row", "local", "neighbor"], rows)


def client_table(series: Sequence[Series]) -> Markup:
    """Return the quartiles over clients and seeds."""
    rows = []
    for s in series:
        for score in ("local", "neighbor"):
            found = [c[score] for m in s.members for c in m.result.clients if math.isfinite(c[score])]
            if found:
                quantiles = np.quantile(found, (0, 0.25, 0.5, 0.75, 1)).tolist()
                rows.append([f"{s.name}, {score}", *map(_percent, quantiles)])
    return table("Over clients and seeds, %", ["row", "worst", "quarter", "median", "three quarters", "best"], rows)


def holdings_table(held: Holdings) -> Markup:
    """Return every client's number of examples, and its largest classes."""
    rows = []
    for name, row in zip(held.client_names, held.train, strict=True):
        order = [int(label) for label in np.argsort(-row, kind="stable") if row[label]]
        words = ", ".join(f"{held.class_names[label]} ({row[label]})" for label in order[:MAX_CLASSES])
        more = f" and {len(order) - MAX_CLASSES} more" if len(order) > MAX_CLASSES else ""
        rows.append([name, str(int(row.sum())), str(len(order)), words + more])
    return table("Training examples", ["client", "examples", "classes", "which, most first"], rows)


def confusion_table(counts: np.ndarray, confusions: Confusions, title: str) -> Markup:
    """List the pairs of classes that are confused most often, by the share of the true class's images."""
    totals = counts.sum(axis=1)
    wrong = counts - np.diag(np.diag(counts))
    shares = wrong / np.maximum(totals, 1)[:, None]
    pairs = sorted(zip(*(axis.tolist() for axis in np.nonzero(wrong)), strict=True), key=lambda at: (-shares[at], at))
    names, owners = confusions.class_names, confusions.owners
    rows = []
    for true, predicted in pairs[:MAX_CONFUSIONS]:
        num_same, num_seeds = int((owners[:, true] == owners[:, predicted]).sum()), len(owners)
        whose = "the same client's" if num_same else "another client's"
        if 0 < num_same < num_seeds:
            whose += f" for {num_same} of {num_seeds} seeds"
        images = f"{wrong[true, predicted]} of {totals[true]} ({shares[true, predicted]:.0%})"
        rows.append([names[true], names[predicted], images, whose])
    if not rows:
        return missing(f"Nothing was confused {title}.")
    return table(f"Largest confusions {title}", ["true class", "taken for", "images", "which is"], rows)


def spent_table(series: Sequence[Series]) -> Markup:
    """Return every audience's epsilon after the first and after the last round."""
    rows = []
    for s in series:
        for audience in s.first.rounds[0].get("epsilon", {}) if s.has_budget and s.first.rounds else {}:
            course = spent(s, audience)
            if course:
                first, last = course[min(course)], course[max(course)]
                rows.append([f"{s.name}, {audience}", f"{first:.4g}", f"{last:.4g}"])
    return table("Epsilon so far", ["row, audience", "first round", "last round"], rows)


def run_table(runs: Sequence[Run]) -> Markup:
    """Return what made every run: seed, versions, and the beginning of the config's identity."""
    keys = list(dict.fromkeys(key for run in runs for key in run.provenance if key != "config_identity"))
    rows = []
    for run in runs:
        identity = run.provenance.get("config_identity", "")
        code = tag("code", identity[:12] or NOTHING, title=identity)
        rows.append([run.name, str(run.seed), *(run.provenance.get(key, NOTHING) for key in keys), code])
    return table("Runs", ["run", "seed", *keys, "config identity"], rows)


def _cell(s: Series, score: str, *, is_best: bool = False) -> Markup:
    """Write a mean and its spread over seeds."""
    values = s.values(score)
    if not values:
        return join([NOTHING])
    middle = f"{mean(values):.1f}"
    parts = [tag("strong", middle) if is_best else middle]
    if len(values) > 1:
        parts.append(tag("span", f" ± {spread(values):.1f}", class_="sd"))
    return join(parts)


def _epsilon(s: Series) -> str:
    """Write an epsilon as the tables of the command line do."""
    if s.epsilon is None:
        return NOTHING
    return "inf" if math.isinf(s.epsilon) else f"{s.epsilon:.3g}"


def _percent(value: float) -> str:
    """Write a fraction in percent."""
    return f"{100 * value:.1f}" if math.isfinite(value) else NOTHING
