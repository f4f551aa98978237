"""The sections of the page, in order. To add one, write a function from a Report to markup and put it into SECTIONS.

A section that has nothing to show says why in one sentence; one that does not apply at all gives None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from hushprompt.report import figures, maps
from hushprompt.report.blocks import curve_legend, details, figure, legend, missing, paragraph, sample, section, table
from hushprompt.report.figures import NAMES
from hushprompt.report.markup import join, tag
from hushprompt.report.privacy_text import epsilon_means
from hushprompt.report.privacy_text import privacy as privacy_section
from hushprompt.report.runs import SCORES, Run, number
from hushprompt.report.series import Series, mean, spread

NUM_CONFUSIONS = 12
MINUS = "–"


@dataclass(frozen=True)
class Report:
    """What the page is made from."""

    title: str
    runs: Sequence[Run]
    unfinished: Sequence[str]
    series: Sequence[Series]

    @property
    def main(self) -> Series:
        """The series of the first run's own method, which stands last in its table."""
        return next(s for s in self.series if any(m.result is self.runs[0].results[-1] for m in s.members))


def results(report: Report) -> Markup:
    """The result table."""
    header = ["method", "local", "neighbor", "harmonic mean", "worst client", "epsilon", "seeds"]
    best = {score: max((mean(s.values(score)) for s in report.series if s.values(score)), default=math.nan) for score in SCORES}  # fmt: skip  # noqa: E501
    rows = []
    for s in report.series:
        cells = [_cell(s, score, is_best=mean(s.values(score)) == best[score]) for score in SCORES]
        rows.append([join([sample(s), tag("span", s.name)]), *cells, epsilon_cell(s), str(len(s.members))])
    words = (
        "Accuracy in percent after the last round, mean over clients, all classes competing; ± is the standard deviation over "
        "seeds. local: a client's own test images. neighbor: the other clients' test images. Highest mean of a column in "
        "bold; a small lead may be chance. epsilon –: no private data was used; none: clipped, but no noise and no guarantee."
    )
    parts = [
        table("Results, last round", header, rows, is_card=True),
        paragraph(words, "note"),
        epsilon_means(report.series),
    ]
    if report.unfinished:
        parts.append(missing(f"Left out, because they are not finished: {', '.join(report.unfinished)}."))
    return section("results", "Results", *parts)


def _cell(s: Series, score: str, *, is_best: bool) -> Markup:
    """Write a mean and its spread over seeds."""
    values = s.values(score)
    if not values:
        return join([MINUS])
    middle = f"{mean(values):.1f}"
    parts = [tag("strong", middle) if is_best else middle]
    if len(values) > 1:
        parts.append(tag("span", f" ± {spread(values):.1f}", class_="sd"))
    return join(parts)


def epsilon_cell(s: Series) -> str:
    """Write an epsilon for the table."""
    if s.epsilon is None:
        return MINUS
    return "none" if math.isinf(s.epsilon) else f"{s.epsilon:.3g}"


def utility(report: Report) -> Markup:
    """Privacy against utility."""
    panels = figures.privacy_utility(report.series)
    if not panels:
        return section("utility", "Privacy and utility", missing("No row has a finite epsilon, so there is no curve."))
    caption = (
        "Accuracy over epsilon: further left is more private. Marks are means over seeds, bars one standard deviation. "
        "Horizontal lines have no place on the axis: gray, dashed ones used no private data; others added no noise."
    )
    numbers = _score_table(report.series, ("harmonic_mean", "local", "neighbor"))
    return section("utility", "Privacy and utility",
                   figure("utility", panels, caption, numbers, legend=curve_legend(report.series)), epsilon_means(report.series))  # fmt: skip  # noqa: E501


def tradeoff(report: Report) -> Markup:
    """Local against neighbor accuracy."""
    panels = figures.local_neighbor(report.series)
    if not panels:
        return section("tradeoff", "Local and neighbor", missing("No row has both local and neighbor accuracy."))
    caption = (
        "Up and to the right is better. On a thin curve the harmonic mean of both is the same (its value stands at the "
        "curve's lower end); on the straight line a prompt is as good for others as at home. Large marks are means, small "
        "ones single seeds; hollow marks have no guarantee to show. A line joins the budgets of one method."
    )
    return section("tradeoff", "Local and neighbor", figure("tradeoff", panels, caption, _seed_table(report.series), legend=curve_legend(report.series)))  # fmt: skip  # noqa: E501


def rounds(report: Report) -> Markup:
    """Accuracy over rounds."""
    panels = figures.over_rounds(report.series)
    if not panels:
        text = "No row was scored after more than one round, so there is no course to draw."
        return section("rounds", "Over the rounds", missing(text))
    caption = (
        "Accuracy on test images after each round: lines are means over seeds, bands reach from the lowest to the highest "
        "seed. Dashed gray: rows that learn nothing. No round was chosen by looking at this figure."
    )
    drawn = [s for s in report.series if s.learns]
    return section("rounds", "Over the rounds",
                   figure("rounds", panels, caption, _round_table(drawn), legend=legend(report.series)))  # fmt: skip


def clients(report: Report) -> Markup:
    """Scores of each client."""
    panels = maps.client_spread(report.series)
    if not panels:
        return section("clients", "Client by client", missing("The records hold no scores of single clients."))
    caption = (
        "Each small mark is one client of one seed; the box holds the middle half, the bar is the median, the thin line "
        "reaches from the worst client to the best. Height within a line means nothing."
    )
    return section("clients", "Client by client", figure("clients", panels, caption, _client_table(report.series)))


def holdings(report: Report) -> Markup:
    """Who holds which class."""
    run = next((run for run in report.runs if run.holdings is not None), None)
    if run is None or run.holdings is None:
        text = "The run folders hold no partition.json (they are from an older version), so there is no map."
        return section("holdings", "Who holds what", missing(text))
    held = run.holdings
    caption = (
        f"Training examples of seed {run.seed} ({run.name}); other seeds cut the data anew. The darker, the more examples. "
        "Not private: such counts are for simulations only."
    )
    header = ["client", "examples", "classes", "which, most first"]
    rows = [[name, str(int(row.sum())), str(int((row > 0).sum())), _most(row, held.class_names)] for name, row in zip(held.client_names, held.train, strict=True)]  # fmt: skip  # noqa: E501
    return section("holdings", "Who holds what",
                   figure("holdings", maps.holdings_map(held), caption, table("Training examples", header, rows)))  # fmt: skip  # noqa: E501


def confusion(report: Report) -> Markup:
    """What is taken for what."""
    chosen = [s for s in _one_a_family(report) if s.first.result.label in s.first.run.confusion]
    if not chosen:
        text = "The run folders hold no confusion counts (they are from an older version), so there is no map."
        return section("confusion", "What is taken for what", missing(text))
    first, *others = (_confusion_of(s, f"confusion-{index}") for index, s in enumerate(chosen))
    return section("confusion", "What is taken for what", first, *others)


def _one_a_family(report: Report) -> list[Series]:
    """Give the main series, then one of each other family: its first with noise if it has one."""
    chosen = {report.main.family: report.main}
    for s in sorted(report.series, key=lambda s: not s.has_budget):
        chosen.setdefault(s.family, s)
    return list(chosen.values())


def _confusion_of(s: Series, slug: str) -> Markup:
    """Show one row's confusion; all but the page's first are folded up."""
    run, tables = s.first.run, s.first.run.confusion[s.first.result.label]
    assert run.holdings is not None, "confusion is only read together with the partition"
    titles = {"local": "on the clients' own images", "neighbor": "on the other clients' images"}
    panels = [
        maps.confusion_map(f"{slug}-{whose}", title, tables[whose], run.holdings) for whose, title in titles.items()
    ]
    caption = (
        f"{s.name}, seed {run.seed}, last round. Each row is a true class, each column a prediction; what is right lies on "
        "the diagonal. Numbers and lines mark the clients that hold the classes: what lies inside the squares on the "
        "diagonal stays within a client's own classes. On other clients' images, an image counts once for each other client."
    )
    lists = [_largest(tables[whose], run.holdings.class_names, run.holdings.train.argmax(axis=0), title) for whose, title in titles.items()]  # fmt: skip  # noqa: E501
    whole = join([figure(slug, panels, caption), details("The largest confusions", *lists)])
    return whole if slug.endswith("-0") else details(s.name, whole)


def _largest(counts: np.ndarray, names: Sequence[str], owners: np.ndarray, title: str) -> Markup:
    """List the pairs of classes that are confused most often, as shares of the true class."""
    totals = counts.sum(axis=1)
    wrong = counts - np.diag(np.diag(counts))
    true, predicted = np.nonzero(wrong)
    order = sorted(range(len(true)), key=lambda i: (-wrong[true[i], predicted[i]] / totals[true[i]], true[i], predicted[i]))  # fmt: skip  # noqa: E501
    rows = []
    for a, b in [(int(true[i]), int(predicted[i])) for i in order[:NUM_CONFUSIONS]]:
        whose = "same client" if owners[a] == owners[b] else "another client's"
        share = f"{wrong[a, b]} of {totals[a]} ({wrong[a, b] / totals[a]:.0%})"
        rows.append([names[a], names[b], share, whose])
    if not rows:
        return missing(f"Nothing was confused {title}.")
    return table(f"Largest confusions {title}", ["true class", "taken for", "images", "which is"], rows)


def spent(report: Report) -> Markup:
    """Epsilon over rounds."""
    panels = figures.epsilon_over_rounds(report.series)
    if not panels:
        return section(
            "spent", "Privacy over the rounds", missing("No row with a finite epsilon has more than one round.")
        )
    caption = (
        "What each audience could have learned so far. Epsilon depends on the noise, the sampling and the number of "
        "rounds, not on the data, so it is the same for every seed."
    )
    header, rows = ["row, audience", "first round", "last round"], []
    for s in report.series:
        for who in s.first.rounds[0].get("epsilon", {}) if s.first.rounds else {}:
            first, last = (number(s.first.rounds[at]["epsilon"].get(who)) for at in (0, -1))
            rows.append([f"{s.name}, {who}", f"{first:.4g}", f"{last:.4g}"])
    return section("spent", "Privacy over the rounds",
                   figure("spent", panels, caption, table("Epsilon so far", header, rows)), epsilon_means(report.series, whose="its panel's audience"))  # fmt: skip  # noqa: E501


def privacy(report: Report) -> Markup:
    """The privacy statement."""
    return section("privacy", "What is protected from whom", *privacy_section(report.series))


def provenance(report: Report) -> Markup:
    """Settings, versions, seeds."""
    keys = list(dict.fromkeys(key for run in report.runs for key in run.provenance if key != "config_identity"))
    header = ["run", "seed", *keys, "config identity"]
    rows = [
        [run.name, str(run.seed), *(run.provenance.get(key, MINUS) for key in keys), _identity(run)]
        for run in report.runs
    ]
    configs: dict[str, list[Run]] = {}
    for run in report.runs:
        without_seed = "\n".join(line for line in run.config_text.splitlines() if not line.startswith("seed ="))
        configs.setdefault(without_seed.partition("\n[runtime]")[0], []).append(run)
    parts = [
        details(
            f"Config of {', '.join(run.name for run in same)}",
            tag("pre", tag("code", same[0].config_text), tabindex="0"),
        )
        for same in configs.values()
    ]
    words = "hushprompt run config.toml makes a run again from its config; equal identities mean equal settings."
    return section("provenance", "Settings and provenance", paragraph(words), table("Runs", header, rows), *parts)


def _identity(run: Run) -> Markup:
    """Write the beginning of a config's identity; all of it shows when it is pointed at."""
    identity = run.provenance.get("config_identity", "")
    return tag("code", identity[:12] or MINUS, title=identity)


def _score_table(series: Sequence[Series], scores: Sequence[str]) -> Markup:
    """Give means and deviations of some scores."""
    rows = [[s.name, *(_cell(s, score, is_best=False) for score in scores)] for s in series]
    return table("Mean ± standard deviation over seeds, %", ["row", *(NAMES[score] for score in scores)], rows)


def _seed_table(series: Sequence[Series]) -> Markup:
    """Give every seed's local and neighbor accuracy."""
    rows = [
        [
            f"{s.name}, seed {m.run.seed}",
            *(_percent(m.result.scores[score]) for score in ("local", "neighbor", "harmonic_mean")),
        ]
        for s in series
        for m in s.members
    ]
    return table("Accuracy of every seed, %", ["row", "local", "neighbor", "harmonic mean"], rows)


def _round_table(series: Sequence[Series]) -> Markup:
    """Give the mean over seeds after every round."""
    rows = []
    for s in series:
        by_round: dict[int, list[list[float]]] = {}
        for member in s.members:
            for record in member.rounds:
                scores = [number(record.get(score)) for score in ("local", "neighbor")]
                by_round.setdefault(int(record["round_index"]), []).append(scores)
        for at, found in sorted(by_round.items()):
            rows.append([f"{s.name}, round {at}", *(_percent(mean(column)) for column in zip(*found, strict=True))])
    return table("Mean over seeds, %", ["row", "local", "neighbor"], rows)


def _client_table(series: Sequence[Series]) -> Markup:
    """Give the spread over clients."""
    rows = []
    for s in series:
        for score in ("local", "neighbor"):
            found = [c[score] for m in s.members for c in m.result.clients if math.isfinite(c[score])]
            if found:
                rows.append(
                    [f"{s.name}, {score}", *(_percent(float(np.quantile(found, q))) for q in (0, 0.25, 0.5, 0.75, 1))]
                )
    return table("Over clients and seeds, %", ["row", "worst", "quarter", "median", "three quarters", "best"], rows)


def _percent(value: float) -> str:
    """Write a fraction in percent."""
    return f"{100 * value:.1f}" if math.isfinite(value) else MINUS


def _most(row: np.ndarray, names: Sequence[str], most: int = 12) -> str:
    """Name a client's classes, those with most examples first."""
    order = [int(i) for i in np.argsort(-row, kind="stable") if row[i]]
    words = [f"{names[i]} ({row[i]})" for i in order[:most]]
    return ", ".join(words) + (f" and {len(order) - most} more" if len(order) > most else "")


Section = Callable[[Report], Markup | None]
SECTIONS: tuple[Section, ...] = (
    results, utility, tradeoff, rounds, clients, holdings, confusion, spent, privacy, provenance,
)  # fmt: skip
