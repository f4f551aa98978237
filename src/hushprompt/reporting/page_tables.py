"""The tables of the page: results, and the numbers behind every figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from hushprompt.privacy.statements import beside_epsilon, number
from hushprompt.reporting.blocks import Block, PageTable, missing
from hushprompt.reporting.comparison_tables import group_epsilons
from hushprompt.reporting.figures import NAMES, audiences_of, client_values, courses, epsilon_curve
from hushprompt.reporting.maps import Confusions
from hushprompt.reporting.pooling import NEW_SCORES, SCORES, Group, measured
from hushprompt.runs.identity import LETTERS, NOT_RECORDED
from hushprompt.runs.reader import FinishedRun, Holdings

MAX_CONFUSIONS = 12
MAX_CLASSES = 12
OVER_SEEDS = "Mean ± standard deviation over seeds, %"


def result_table(groups: Sequence[Group]) -> PageTable:
    """Return mean and spread of every arm; the highest mean of a column among arms of one epsilon is set in bold."""
    title, epsilons = group_epsilons(groups)
    best = {
        (score, epsilon): _best([group for group, same in zip(groups, epsilons, strict=True) if same == epsilon], score)
        for score in SCORES
        for epsilon in set(epsilons)
    }
    rows = [
        [
            group.name,
            *(_cell(group, score, is_best=group.spread(score).mean == best[score, epsilon]) for score in SCORES),
            epsilon,
            str(len(group.arms)),
        ]
        for group, epsilon in zip(groups, epsilons, strict=True)
    ]
    return PageTable(OVER_SEEDS, ["method", *SCORES.values(), title, "seeds"], rows, "cards", has_samples=True)


def _best(groups: Sequence[Group], score: str) -> float:
    """Return the highest mean of a score; NaN, which equals nothing, where there are no two that differ."""
    means = [mean for group in groups if math.isfinite(mean := group.spread(score).mean)]
    return max(means) if len(set(means)) > 1 else math.nan


def new_class_table(groups: Sequence[Group]) -> PageTable | None:
    """Return accuracies on base and new classes; None where all classes are trained on."""
    if not any(group.percents("new") for group in groups):
        return None
    rows = [[group.name, *(_cell(group, score) for score in NEW_SCORES)] for group in groups]
    caption = "Base classes among themselves, and classes that nobody trained on among themselves, %"
    return PageTable(caption, ["method", *NEW_SCORES.values()], rows, "cards")


def measure_table(groups: Sequence[Group]) -> PageTable | None:
    """Return how well questions are answered; None where examples have classes."""
    scores = measured(groups)
    if not scores:
        return None
    rows = [[group.name, *(_cell(group, score) for score in scores)] for group in groups]
    caption = "Answers to questions: loss in nats a token, all else in %"
    return PageTable(caption, ["method", *scores.values()], rows, "cards")


def score_table(groups: Sequence[Group], scores: Sequence[str]) -> PageTable:
    """Return means and deviations of some scores."""
    title, epsilons = group_epsilons(groups)
    rows = [
        [g.name, *(_cell(g, score) for score in scores), epsilon] for g, epsilon in zip(groups, epsilons, strict=True)
    ]
    return PageTable(OVER_SEEDS, ["arm", *(NAMES[score] for score in scores), title], rows, "cards")


def seed_table(groups: Sequence[Group]) -> PageTable:
    """Return every seed's local and neighbor accuracy."""
    scores = ("local", "neighbor", "harmonic_mean")
    rows = [
        [f"{group.name}, seed {arm.run.seed}", *(_percent(arm.score(score)) for score in scores)]
        for group in groups
        for arm in group.arms
    ]
    return PageTable("Accuracy of every seed, %", ["arm", *(SCORES[score] for score in scores)], rows)


def round_table(groups: Sequence[Group]) -> PageTable:
    """Return the mean over seeds after every round that was scored."""
    rows, scores = [], courses(groups)
    for group in groups:
        by_round: dict[int, list[Mapping[str, object]]] = {}
        for record in (record for arm in group.arms for record in arm.rounds):
            by_round.setdefault(int(record["round_index"]), []).append(record)
        for at, found in sorted(by_round.items()):
            means = [float(np.mean([number(record.get(score)) for record in found])) for score in scores]
            rows.append([f"{group.name}, round {at}", *map(_percent, means)])
    return PageTable("Mean over seeds, %", ["arm", *scores.values()], rows)


def client_table(groups: Sequence[Group]) -> PageTable:
    """Return the quartiles over clients and seeds."""
    rows = []
    for group in groups:
        for score in ("local", "neighbor"):
            found = client_values(group, score)
            if found:
                quantiles = np.quantile(found, (0, 0.25, 0.5, 0.75, 1))
                rows.append([f"{group.name}, {score}", *(f"{value:.1f}" for value in quantiles)])
    return PageTable(
        "Over clients and seeds, %", ["arm", "worst", "quarter", "median", "three quarters", "best"], rows, "cards"
    )


def gain_table(groups: Sequence[Group]) -> PageTable | None:
    """Return what each client of a federation told, with noise, of its own images; None where none did."""
    rows = [
        [group.name, str(client["client"]), *(_percent(number(client[key])) for key in ("zero_shot", "local"))]
        for group in groups
        for arm in group.arms
        for client in arm.summary.per_client
        if "zero_shot" in client
    ]
    title = "What each client gained: own images right, from noisy counts, %"
    return PageTable(title, ["arm", "client", "zero-shot", "now"], rows, "cards") if rows else None


def holdings_table(held: Holdings) -> PageTable:
    """Return every client's number of examples, and its largest classes."""
    rows = []
    for name, row in zip(held.client_names, held.train, strict=True):
        order = [int(label) for label in np.argsort(-row, kind="stable") if row[label]]
        words = ", ".join(f"{held.class_names[label]} ({row[label]})" for label in order[:MAX_CLASSES])
        more = f" and {len(order) - MAX_CLASSES} more" if len(order) > MAX_CLASSES else ""
        rows.append([name, str(int(row.sum())), str(len(order)), words + more])
    return PageTable("Training examples", ["client", "examples", "classes", "which, most first"], rows, "lines")


def confusion_table(counts: np.ndarray, confusions: Confusions, title: str) -> Block:
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
    return PageTable(
        f"Largest confusions {title}", ["true class", "predicted class", "images", "which is"], rows, "lines"
    )


def spent_table(groups: Sequence[Group]) -> PageTable:
    """Return every audience's epsilon after the first and after the last round."""
    rows = []
    for group in groups:
        for audience in audiences_of([group]) if group.has_budget else ():
            course = list(epsilon_curve(group, audience).values())
            if course:
                ends = [f"{value:.4g}{beside_epsilon(group.noise_source)}" for value in (course[0], course[-1])]
                rows.append([f"{group.name}, {audience}", *ends])
    return PageTable("Epsilon so far", ["arm, audience", "first round", "last round"], rows, "cards")


def run_table(runs: Sequence[FinishedRun]) -> PageTable:
    """Return what made every run: seed, versions, and the beginning of the config's identity."""
    keys = list(dict.fromkeys(key for run in runs for key in run.provenance if key != "config_identity"))
    rows = []
    for run in runs:
        identity = run.provenance.get("config_identity", "")
        code = Markup('<code title="{}">{}</code>').format(identity, identity[:12] or "-")
        data = (run.identity.data_digest[:LETTERS] if run.identity else "") or NOT_RECORDED
        rows.append([run.name, str(run.seed), *(run.provenance.get(key, "-") for key in keys), code, data])
    return PageTable("Runs", ["run", "seed", *keys, "config identity", "data"], rows, "lines")


def _cell(group: Group, score: str, *, is_best: bool = False) -> str:
    """Write a mean and its deviation over seeds."""
    mean, plus_minus, deviation = group.written(score).partition(" ± ")
    middle = Markup("<strong>{}</strong>").format(mean) if is_best and mean != "-" else mean
    return Markup('{}<span class="sd"> ± {}</span>').format(middle, deviation) if plus_minus else middle


def _percent(value: float) -> str:
    """Write a fraction in percent."""
    return f"{100 * value:.1f}" if math.isfinite(value) else "-"
