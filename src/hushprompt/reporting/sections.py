"""The sections of the page, in order. To add one, write a function from a Report to a section and put it into SECTIONS.

A section that has nothing to show says why in one sentence; one that does not apply at all is None.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hushprompt.privacy.statements import AUDIENCES, in_plain_words
from hushprompt.reporting import figures, maps, meaning, page_tables, roc, tables
from hushprompt.reporting.audits import audit_blocks
from hushprompt.reporting.blocks import Block, Code, Definitions, Fold, Guarantees, PageSection, Words, missing
from hushprompt.reporting.blocks import figures as drawn
from hushprompt.reporting.maps import pooled
from hushprompt.reporting.pooling import LOSSES, Group, measured, simulated
from hushprompt.runs.reader import FinishedRun
from hushprompt.words import counted

MAX_OPEN = 6
"""Statements that stand open; more than these are folded up."""


def statements(groups: Sequence[Group]) -> list[Block]:
    """Return the guarantee of every trained arm for every audience, then what no guarantee covers."""
    every = [_statement(group) for group in groups if group.learns]
    parts: list[Block] = list(every[-MAX_OPEN:])
    if len(every) > MAX_OPEN:
        parts.append(Fold(f"The other {counted(len(every) - MAX_OPEN, 'arm')}", every[:-MAX_OPEN]))
    notes = _notes(groups)
    if notes:
        parts.append(Definitions("For every arm", notes))
    return parts or [missing("No arm was trained on private data.")]


def _statement(group: Group) -> Block:
    """Return the guarantee of one arm for every audience."""
    guarantees = group.first.guarantees
    if not guarantees:
        return missing(f"{group.name}: the run folder has no privacy.json for it, so nothing is claimed.")
    items = [
        (AUDIENCES.get(who, who), str(guarantee.get("statement", "")), in_plain_words(guarantee))
        for who, guarantee in guarantees.items()
    ]
    # Where all clients take part in every round, nothing is said of it.
    participation = (group.first.privacy.get("participation") or {}).get("statement") or ""
    return Guarantees(group.name, items, str(participation))


def _notes(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """Return the sentences of `privacy.json` that hold for a whole run, each once."""
    found: dict[tuple[str, str], None] = {}
    for group in groups:
        for arm in group.arms:
            for key, value in (arm.run.privacy or {}).items():
                if isinstance(value, str):
                    found[key.replace("_", " "), value] = None
    return list(found)


@dataclass(frozen=True)
class Report:
    """What the page is made from."""

    title: str
    runs: Sequence[FinishedRun]
    unfinished: Sequence[str]
    """Names of run folders that were found and left out."""
    groups: Sequence[Group]

    @property
    def main(self) -> Group:
        """The group of the first run's own method, which stands last in its table."""
        own = self.runs[0].arms[-1]
        return next((g for g in self.groups if any(arm.summary is own for arm in g.arms)), self.groups[-1])


def _without(kind: str) -> Block:
    """Say why a section has no figure of a kind."""
    text = figures.MISSING[kind]
    return missing(text[:1].upper() + text[1:])


def _with_figure(
    report: Report, slug: str, title: str, kind: str, numbers: Callable[[], Block], words: Sequence[str] = ()
) -> PageSection:
    """Return a section with a figure, the numbers behind it and sentences; or why there is no such figure."""
    drawing = figures.KINDS[kind](report.runs, report.groups)
    blocks = [_without(kind)] if drawing is None else [drawn(drawing, numbers()), *map(Words, words)]
    return PageSection(slug, title, blocks)


def results(report: Report) -> PageSection:
    """The result table."""
    counts = sorted({arm.summary.num_last_rounds for g in report.groups if g.learns for arm in g.arms} or {1})
    last = "after the last round" if counts == [1] else f"over the last {' or '.join(map(str, counts))} rounds"
    deviation = "; ± is the standard deviation over seeds" if any(len(g.arms) > 1 for g in report.groups) else ""
    is_open = any(arm.summary.is_open for g in report.groups for arm in g.arms)
    what = "as shares of answers that are one of the true ones" if is_open else "all classes competing"
    words = (
        f"Accuracy in percent {last}, mean over clients, {what}{deviation}. local: a client's own test "
        "images. neighbor: the other clients' test images. Bold: the highest mean among arms of one epsilon; a small "
        "lead may be chance. epsilon -: no private data used; inf: clipped, no noise, no guarantee."
    )
    blocks: list[Block] = [page_tables.result_table(report.groups)]
    more = page_tables.new_class_table(report.groups), page_tables.measure_table(report.groups)
    blocks += [table for table in more if table is not None]
    some = tables.means_over_some([(group.name, arm.summary) for group in report.groups for arm in group.arms])
    blocks += [Words(words), *map(Words, some), *map(Words, meaning.of_epsilon(report.groups))]
    if report.unfinished:
        blocks.append(missing(f"Left out, because they are not finished: {', '.join(report.unfinished)}."))
    return PageSection("results", "Results", blocks)


def utility(report: Report) -> PageSection:
    """Privacy against utility."""
    shares = [score for score in measured(report.groups) if score not in LOSSES]
    scores = ("harmonic_mean", "local", "neighbor", *shares)
    numbers = functools.partial(page_tables.score_table, report.groups, scores)
    words = meaning.of_epsilon(report.groups)
    return _with_figure(report, "utility", "Privacy and utility", "budget", numbers, words)


def local_and_neighbor(report: Report) -> PageSection:
    """Local against neighbor accuracy."""
    numbers = functools.partial(page_tables.seed_table, report.groups)
    return _with_figure(report, "tradeoff-section", "Local and neighbor", "tradeoff", numbers)


def rounds(report: Report) -> PageSection:
    """Accuracy over rounds."""
    numbers = functools.partial(page_tables.round_table, [g for g in report.groups if g.learns])
    return _with_figure(report, "rounds", "Over the rounds", "curves", numbers)


def clients(report: Report) -> PageSection:
    """Scores of each client."""
    numbers, gains = functools.partial(page_tables.client_table, report.groups), page_tables.gain_table(report.groups)
    section = _with_figure(report, "clients", "Client by client", "clients", numbers)
    return section if gains is None else dataclasses.replace(section, blocks=[gains, *section.blocks])


def holdings(report: Report) -> PageSection:
    """Who holds which class."""
    held = [run.holdings for run in report.runs if run.holdings is not None]
    return _with_figure(
        report, "holdings-section", "Who holds what", "partition", lambda: page_tables.holdings_table(held[0])
    )


def confusion(report: Report) -> PageSection:
    """The confusion matrices."""
    slug, title = "confusion", "What is taken for what"
    blocks: list[Block] = []
    for group in _one_a_family(report):
        found = pooled(group.arms)
        if found is None or not any(table.any() for table in found.tables.values()):
            continue
        whole = drawn(maps.confusion_of(group.name, found, f"confusion-{len(blocks)}", simulated([group])))
        largest = [
            page_tables.confusion_table(found.tables[whose], found, words)
            for whose, words in maps.WORDS.items()
            if found.tables[whose].any()
        ]
        parts = [whole, Fold("The largest confusions", largest)]
        blocks += [Fold(group.name, parts)] if blocks else parts
    if not blocks:
        return PageSection(slug, title, [_without("confusion")])
    return PageSection(slug, title, blocks)


def _one_a_family(report: Report) -> list[Group]:
    """Return the main group, then one of each other family: its first with noise if it has one."""
    chosen = {report.main.family: report.main}
    for group in sorted(report.groups, key=lambda group: not group.has_budget):
        chosen.setdefault(group.family, group)
    return list(chosen.values())


def privacy_spent(report: Report) -> PageSection:
    """Epsilon over rounds."""
    words = meaning.of_epsilon([g for g in report.groups if g.has_budget], whose="its panel's audience")
    numbers = functools.partial(page_tables.spent_table, report.groups)
    return _with_figure(report, "spent", "Privacy over the rounds", "epsilon", numbers, words)


def privacy(report: Report) -> PageSection:
    """The privacy statement."""
    return PageSection("privacy", "What is protected from whom", statements(report.groups))


def audit(report: Report) -> PageSection | None:
    """What attacks found, where a run was audited."""
    blocks = audit_blocks(report.runs)
    if not blocks:
        return None
    words = (
        "What an attacker measured, beside what is proven: a lower bound must not exceed the proven epsilon, and a "
        "small one does not prove that little can be learned. An AUC of 0.5 is guessing."
    )
    drawing = roc.roc(report.runs, report.groups)
    curves = [Fold("ROC curves", [drawn(drawing)])] if drawing else []
    return PageSection("audit", "What attacks found", [Words(words, ""), *blocks, *curves])


def provenance(report: Report) -> PageSection:
    """Settings, versions, seeds."""
    words = "hushprompt run config.toml makes a run again from its config; equal identities mean equal settings."
    edited = [
        missing(f"{run.name}: {text}; hushprompt verify says more.") for run in report.runs for text in run.edited
    ]
    configs: dict[str, list[FinishedRun]] = {}
    for run in report.runs:
        without_seed = "\n".join(line for line in run.config_text.splitlines() if not line.startswith("seed ="))
        configs.setdefault(without_seed.partition("\n[runtime]")[0], []).append(run)
    folds = [
        Fold(f"Config of {', '.join(run.name for run in same)}", [Code(same[0].config_text)])
        for same in configs.values()
    ]
    table = page_tables.run_table(report.runs)
    runs: Block = table if len(report.runs) <= 4 else Fold(f"The {len(report.runs)} runs", [table])
    return PageSection("provenance", "Settings and provenance", [Words(words, ""), *edited, runs, *folds])


SECTIONS: tuple[Callable[[Report], PageSection | None], ...] = (
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
