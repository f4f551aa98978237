"""The sections of the page, in order. To add one, write a function from a Report to markup and put it into SECTIONS.

A section that has nothing to show says why in one sentence; one that does not apply at all gives None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from hushprompt.reporting import audits, figures, maps, numbers, privacy_text, tradeoff
from hushprompt.reporting.blocks import curve_legend, details, figure, legend, missing, paragraph, section
from hushprompt.reporting.confusions import Confusions, pooled
from hushprompt.reporting.markup import join, tag
from hushprompt.reporting.runs import Run
from hushprompt.reporting.series import Series, lowest_drawn, mean


@dataclass(frozen=True)
class Report:
    """What the page is made from."""

    title: str
    runs: Sequence[Run]
    unfinished: Sequence[str]
    """Names of run folders that were found and left out."""
    series: Sequence[Series]

    @property
    def main(self) -> Series:
        """The series of the first run's own method, which stands last in its table."""
        own = self.runs[0].results[-1]
        return next((s for s in self.series if any(m.result is own for m in s.members)), self.series[-1])


def results(report: Report) -> Markup:
    """The result table."""
    counts = sorted({m.result.num_last_rounds for s in report.series if s.learns for m in s.members} or {1})
    last = "after the last round" if counts == [1] else f"over the last {' or '.join(map(str, counts))} rounds"
    words = (
        f"Accuracy in percent {last}, mean over clients, all classes competing; ± is the standard "
        "deviation over seeds. local: a client's own test images. neighbor: the other clients' test images. The "
        "highest mean of a column is bold; a small lead may be chance. epsilon -: no private data used; inf: clipped, "
        "no noise, no guarantee."
    )
    parts = [numbers.result_table(report.series), paragraph(words, "note"), privacy_text.epsilon_means(report.series)]
    if (new_classes := numbers.new_class_table(report.series)) is not None:
        parts.insert(1, new_classes)
    if report.unfinished:
        parts.append(missing(f"Left out, because they are not finished: {', '.join(report.unfinished)}."))
    return section("results", "Results", *parts)


def utility(report: Report) -> Markup:
    """Privacy against utility."""
    title = "Privacy and utility"
    panels = figures.privacy_utility(report.series)
    if not panels:
        return section("utility", title, missing("No row has a finite epsilon, so there is no curve."))
    caption = (
        "Accuracy over epsilon: further left is more private. Marks are means over seeds, bars one standard deviation. "
        "Horizontal lines have no place on the axis: gray, dashed ones used no private data; others added no noise."
    ) + _on_the_edge(report, "harmonic_mean")
    table = numbers.score_table(report.series, ("harmonic_mean", "local", "neighbor"))
    whole = figure("utility", panels, caption, table, legend=curve_legend(report.series))
    return section("utility", title, whole, privacy_text.epsilon_means(report.series))


def local_and_neighbor(report: Report) -> Markup:
    """Local against neighbor accuracy."""
    title = "Local and neighbor"
    panels = tradeoff.local_neighbor(report.series)
    if not panels:
        return section("tradeoff-section", title, missing("No row has both local and neighbor accuracy."))
    caption = (
        "Up and to the right is better. On a thin curve the harmonic mean of both is the same (its value stands at the "
        "curve's lower end); on the dotted line a prompt is as good for others as at home. Large marks are means, "
        "small ones single seeds; hollow marks have no guarantee to show. A line joins the budgets of one method."
    ) + _on_the_edge(report, "local")
    table = numbers.seed_table(report.series)
    return section(
        "tradeoff-section", title, figure("tradeoff", panels, caption, table, legend=curve_legend(report.series))
    )


def _on_the_edge(report: Report, score: str) -> str:
    """Name the rows that are so far below those that learn nothing that a figure has them on its edge."""
    low = lowest_drawn(report.series, score)
    names = [f"{s.name} ({mean(s.values(score)):.1f})" for s in report.series if mean(s.values(score)) < low]
    return f" On the lower edge, because they lie below it: {', '.join(names)}." if names else ""


def rounds(report: Report) -> Markup:
    """Accuracy over rounds."""
    title = "Over the rounds"
    panels = figures.over_rounds(report.series)
    if not panels:
        text = "No row was scored after more than one round, so there is no course to draw."
        return section("rounds", title, missing(text))
    caption = (
        "Accuracy on test images after each round: lines are means over seeds, bands reach from the lowest to the "
        "highest seed. Dashed gray: rows that learn nothing. No round was chosen by looking at this figure."
    )
    table = numbers.round_table([s for s in report.series if s.learns])
    return section("rounds", title, figure("rounds", panels, caption, table, legend=legend(report.series)))


def clients(report: Report) -> Markup:
    """Scores of each client."""
    title = "Client by client"
    panels = maps.client_spread(report.series)
    if not panels:
        return section("clients", title, missing("The records hold no scores of single clients."))
    caption = (
        "Each small mark is one client of one seed; the box holds the middle half, the bar is the median, the thin "
        "line reaches from the worst client to the best. Height within a line means nothing."
    )
    return section("clients", title, figure("clients", panels, caption, numbers.client_table(report.series)))


def holdings(report: Report) -> Markup:
    """Who holds which class."""
    title = "Who holds what"
    run = next((run for run in report.runs if run.holdings is not None), None)
    if run is None or run.holdings is None:
        text = "The run folders hold no partition.json (they are from an older version), so there is no map."
        return section("holdings-section", title, missing(text))
    caption = (
        f"Training examples of seed {run.seed} ({run.name}); another seed or setting may cut the data in another way. "
        "The darker, the more examples. Not private: such counts are for simulations only."
    )
    table = numbers.holdings_table(run.holdings)
    return section("holdings-section", title, figure("holdings", maps.holdings_map(run.holdings), caption, table))


def confusion(report: Report) -> Markup:
    """What is taken for what."""
    title = "What is taken for what"
    drawn = [(s.name, found) for s in _one_a_family(report) if (found := pooled(s.members)) is not None]
    if not drawn:
        text = (
            "The run folders hold no confusion counts (their evaluation images are protected, or they are from an "
            "older version), so there is no map."
        )
        return section("confusion", title, missing(text))
    first, *others = (_confusion_of(name, found, f"confusion-{at}") for at, (name, found) in enumerate(drawn))
    folded = [details(name, whole) for (name, _), whole in zip(drawn[1:], others, strict=True)]
    return section("confusion", title, first, *folded)


def _one_a_family(report: Report) -> list[Series]:
    """Return the main series, then one of each other family: its first with noise if it has one."""
    chosen = {report.main.family: report.main}
    for s in sorted(report.series, key=lambda s: not s.has_budget):
        chosen.setdefault(s.family, s)
    return list(chosen.values())


def _confusion_of(name: str, found: Confusions, slug: str) -> Markup:
    """Show one row's confusion."""
    titles = {"local": "on the clients' own images", "neighbor": "on the other clients' images"}
    panels, lists = [], []
    for whose, title in titles.items():
        panels.append(maps.confusion_map(f"{slug}-{whose}", title, found.tables[whose], found))
        lists.append(numbers.confusion_table(found.tables[whose], found, title))
    seeds = f"seed{'s' if len(found.seeds) > 1 else ''} {', '.join(map(str, found.seeds))}"
    if found.has_one_partition:
        order = (
            "Numbers and lines mark the clients that hold the classes: what lies inside the squares on the diagonal "
            "stays within a client's own classes."
        )
    else:
        order = (
            "Each seed gives the classes to other clients, so they do not stand by client: classes that are taken for "
            "each other stand together, the same way in both panels."
        )
    caption = (
        f"{name}, {seeds}, last round. Each row is a true class, each column a prediction; what is right lies on the "
        f"diagonal. {order} On other clients' images, an image counts once for each other client."
    )
    return join([figure(slug, panels, caption), details("The largest confusions", *lists)])


def privacy_spent(report: Report) -> Markup:
    """Epsilon over rounds."""
    title = "Privacy over the rounds"
    panels = figures.epsilon_over_rounds(report.series)
    if not panels:
        return section("spent", title, missing("No row with a finite epsilon has more than one round."))
    caption = (
        "What each audience could have learned so far. Epsilon depends on the noise, the sampling and the number of "
        "rounds, not on the data, so it is the same for every seed."
    )
    meaning = privacy_text.epsilon_means(report.series, whose="its panel's audience")
    return section("spent", title, figure("spent", panels, caption, numbers.spent_table(report.series)), meaning)


def privacy(report: Report) -> Markup:
    """The privacy statement."""
    return section("privacy", "What is protected from whom", *privacy_text.statements(report.series))


def audit(report: Report) -> Markup | None:
    """What attacks found, where a run was audited."""
    parts = audits.audit_parts(report.runs)
    words = (
        "What an attacker measured, beside what is proven: a lower bound must not exceed the proven epsilon, and a "
        "small one does not prove that little can be learned. An AUC of 0.5 is guessing."
    )
    return section("audit", "What attacks found", paragraph(words), *parts) if parts else None


def provenance(report: Report) -> Markup:
    """Settings, versions, seeds."""
    words = "hushprompt run config.toml makes a run again from its config; equal identities mean equal settings."
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
    title = "Settings and provenance"
    return section("provenance", title, paragraph(words), numbers.run_table(report.runs), *parts)


Section = Callable[[Report], Markup | None]
SECTIONS: tuple[Section, ...] = (
    results,
    utility,
    local_and_neighbor,
    rounds,
    clients,
    holdings,
    confusion,
    privacy_spent,
    privacy,
    audit,
    provenance,
)
