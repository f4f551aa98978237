"""Tables of a comparison, with what makes their numbers mean something under them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from hushprompt.config.overrides import short_names
from hushprompt.errors import ConfigError
from hushprompt.evaluation import significance
from hushprompt.evaluation.significance import Difference
from hushprompt.privacy.statements import SIMULATION, beside_epsilon
from hushprompt.reporting import meaning, tables
from hushprompt.reporting.comparison import Comparison, in_order
from hushprompt.reporting.formats import Grid, comma_separated
from hushprompt.reporting.pooling import (
    EPSILON,
    LOSSES,
    MEASURES,
    METHOD,
    SCORES,
    Group,
    companions,
    find_key,
    measured,
)
from hushprompt.runs.reader import FinishedRun

TITLES = {**SCORES, **MEASURES}
LEVEL = 0.05
"""Corrected p below which a difference gets a star."""


def tables_of(comparisons: Sequence[Comparison], columns: str | None, scores: Sequence[str] = ()) -> list[Grid]:
    """Return the tables of comparisons, each note under the first table that it belongs to.

    They are named "scores", of answers to questions "answers" or, with `columns`, by their score; tables of differences
    "local-differences" and so on.

    Args:
        comparisons: as `comparison.of_runs` returns them.
        columns: setting whose values stand side by side; None: a line a group.
        scores: for tables of one score; empty: local and neighbor, and the harmonic mean of what is tested.
    """
    grids: list[Grid] = []
    for comparison in comparisons:
        if columns is None:
            grids.append(table(comparison))
            if measures := measured(comparison.groups):
                grids.append(table(comparison, measures, "answers"))
        else:
            grids += [pivot(comparison, columns, score) for score in scores or ("local", "neighbor")]
        if comparison.references:
            grids += [differences(comparison, score) for score in scores or ("local", "neighbor", "harmonic_mean")]
    said: set[str] = set()
    kept = []
    for grid in grids:
        kept.append(dataclasses.replace(grid, notes=tuple(note for note in grid.notes if note not in said)))
        said |= set(grid.notes)
    return kept


def csv_text(comparisons: Sequence[Comparison]) -> str:
    """Return all groups as lines of one CSV file, with a column for whatever any of the tables shows."""
    header: list[str] = []
    lines: list[dict[str, object]] = []
    for comparison in comparisons:
        own, rows = flat_rows(comparison, comparison.title)
        header += [name for name in own if name not in header]
        lines += [dict(zip(own, row, strict=True)) for row in rows]
    return comma_separated(header, [[line.get(name, "") for name in header] for line in lines])


def table(comparison: Comparison, scores: Mapping[str, str] = SCORES, name: str = "scores") -> Grid:
    """Return one line a group: what it is, some scores, its seeds."""
    names = _names(comparison.columns)
    title, epsilons = group_epsilons(comparison.groups)
    rows = tuple(
        (
            group.title,
            *(group.label(key) for key in comparison.columns),
            epsilons[at],
            *(_cell(comparison, at, score) for score in scores),
            str(len(group.arms)),
        )
        for at, group in enumerate(comparison.groups)
    )
    return Grid(
        title=comparison.title,
        header=("method", *names, title, *scores.values(), "seeds"),
        rows=rows,
        notes=tuple(captions(comparison)),
        num_names=1 + len(names),
        name=name,
    )


def group_epsilons(groups: Sequence[Group]) -> tuple[str, list[str]]:
    """Return title and cells of a column with every group's proven epsilon."""
    return tables.epsilon_column([(group.epsilon, group.noise_source) for group in groups])


def pivot(comparison: Comparison, key: str, score: str) -> Grid:
    """Return one line a method and one column for each value of a setting, as papers do.

    Raises:
        ConfigError: the setting is the same in all rows, or is none that tells them apart.
    """
    key = find_key(key, [EPSILON, *comparison.columns])
    values = in_order([group.label(key) for group in comparison.groups], is_descending=key == EPSILON)
    if len(values) < 2:
        raise ConfigError(f"--columns {key}: it is {values[0]} in all rows, so there is nothing to put side by side.")
    others = [other for other in (EPSILON, *comparison.columns) if other != key]
    others = [other for other in others if len({group.label(other) for group in comparison.groups}) > 1]
    told = beside_epsilon("seeded")
    sources = {group.noise_source for group in comparison.groups if group.has_budget}
    is_mixed = len(sources) > 1
    simulated = told if sources == {"seeded"} and key == EPSILON else ""
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for at, group in enumerate(comparison.groups):
        method = group.title + (told if is_mixed and group.has_budget and group.noise_source == "seeded" else "")
        line = lines.setdefault((method, *(group.label(other) for other in others)), {})
        line[group.label(key)] = _cell(comparison, at, score) + _proven(group)
    name = _names([key])[0]
    return Grid(
        title=f"{TITLES[score]}{' accuracy' if score in SCORES else ''} by {name}{simulated}"
        + (f", {comparison.title}" if comparison.title else ""),
        header=("method", *_names(others), *(f"{name} {value}" if value != "-" else f"no {name}" for value in values)),
        rows=tuple((*line, *(cells.get(value, "") for value in values)) for line, cells in lines.items()),
        notes=(_seeds_note(comparison), *captions(comparison)),
        num_names=1 + len(others),
        name=score,
    )


def differences(comparison: Comparison, score: str) -> Grid:
    """Return one line for each group that is compared with another: by how much it is better, and how sure that is."""
    names = _names(comparison.columns)
    title, epsilons = group_epsilons(comparison.groups)
    rows = []
    for at, (difference, p_holm) in comparison.differences.get(score, {}).items():
        group = comparison.groups[at]
        rows.append(
            (
                group.title,
                *(group.label(key) for key in comparison.columns),
                epsilons[at],
                _signed(score, difference.mean),
                _interval(score, difference),
                _p_text(difference.p),
                _p_text(p_holm),
                str(difference.num_seeds),
            )
        )
    return Grid(
        title=f"{TITLES[score]}: difference{'' if score in LOSSES else ' in points'} to {_against(comparison)}"
        + (f", {comparison.title}" if comparison.title else ""),
        header=("method", *names, title, "difference", "95 % interval", "p", "p (Holm)", "seeds"),
        rows=tuple(rows),
        notes=(),
        num_names=1 + len(names),
        name=f"{score}-differences",
    )


def flat_rows(comparison: Comparison, by: str) -> tuple[list[str], list[list[object]]]:
    """Return header and lines of numbers, one a group, as fractions and with nothing left to captions."""
    header = ["table", "method", "title", *comparison.columns, "epsilon", "delta", "audience"]
    header += ["privacy_unit", "neighboring_relation", "accountant", "noise"]
    header += ["seeds", "num_seeds", "num_rounds"]
    scores = (*SCORES, *measured(comparison.groups))
    header += [f"{score}_{what}" for score in scores for what in ("mean", "std")]
    statistics = ("difference", "low", "high", "p", "p_holm")
    header += ["against"] + [f"{score}_{what}" for score in scores for what in statistics]
    lines: list[list[object]] = []
    for at, group in enumerate(comparison.groups):
        summary, guarantee = group.first.summary, group.guarantee or {}
        line: list[object] = [by, summary.method, group.title, *(group.label(key) for key in comparison.columns)]
        line += ["" if group.epsilon is None else group.epsilon, summary.delta, summary.audience]
        line += [guarantee.get(key, "") for key in ("privacy_unit", "neighboring_relation", "accountant")]
        line.append("" if group.epsilon is None else SIMULATION if group.noise_source == "seeded" else "secure")
        line += [" ".join(map(str, group.by_seed("local"))), len(group.arms), summary.num_rounds]
        for score in scores:
            spread = group.spread(score)
            line += ["" if math.isnan(spread.mean) else spread.mean, "" if math.isnan(spread.std) else spread.std]
        line.append(
            _row_name(comparison, comparison.groups[comparison.references[at]]) if at in comparison.references else ""
        )
        for score in scores:
            line += _numbers(comparison.differences[score].get(at))
        lines.append(line)
    return header, lines


def captions(comparison: Comparison) -> list[str]:
    """Return what must stand under a table: what its numbers are, what epsilon means, what was tested."""
    groups = comparison.groups
    is_open = any(arm.summary.is_open for group in groups for arm in group.arms)
    meant = "a share of answers that are one of the true ones; losses in nats" if is_open else "all classes compete"
    lines = [
        f"Accuracies in %, mean ± standard deviation over seeds, {_reported(comparison)}, means over clients. local: a "
        f"client's own images; neighbor: the other clients'; worst client: lowest local accuracy; {meant}."
    ]
    if any(group.learns for group in groups):
        lines.append(f"{' '.join(meaning.of_epsilon(groups))} -: no private data used; inf: no guarantee.")
    lines += tables.means_over_some([(group.title, arm.summary) for group in groups for arm in group.arms])
    along = companions(groups)
    if along:
        lines.append(f"Set along with these: {', '.join(along)}.")
    if comparison.references:
        num_seeds = min(len(group.arms) for group in groups)
        lines.append(significance.description(comparison.test, num_seeds))
        left = [group for at, group in enumerate(groups) if at not in comparison.references]
        untested = [
            _row_name(comparison, group) for group in left if groups.index(group) not in comparison.references.values()
        ]
        if untested:
            lines.append(
                f"Not compared, for want of one row to compare with or of common clients: {', '.join(untested)}."
            )
    lines.append(_versions({arm.run.name: arm.run for group in groups for arm in group.arms}.values()))
    return [*lines, *comparison.notes]


def _versions(runs: Iterable[FinishedRun]) -> str:
    """Say which versions made the runs; of other packages only where they differ."""
    found: dict[str, set[str]] = {}
    for run in runs:
        versions = {} if run.identity is None else run.identity.versions
        for package, version in {**versions, "hushprompt": run.provenance.get("hushprompt", "?")}.items():
            found.setdefault(package, set()).add(version)
    own = f"hushprompt {', '.join(sorted(found.pop('hushprompt')))}."
    others = [f"{package} {', '.join(sorted(known))}" for package, known in sorted(found.items()) if len(known) > 1]
    return f"{own} Made with different versions: {'; '.join(others)}." if others else own


def _names(columns: Sequence[str]) -> list[str]:
    """Write dotted keys for a header."""
    short = short_names(list(dict.fromkeys([METHOD, EPSILON, *columns])))
    return [short[key].replace("_", " ") for key in columns]


def _cell(comparison: Comparison, at: int, score: str) -> str:
    """Write mean and spread, with a star where the difference is significant."""
    text = comparison.groups[at].written(score)
    _, p = comparison.differences.get(score, {}).get(at, (None, None))
    return f"{text}*" if p is not None and p < LEVEL else text


def _proven(group: Group) -> str:
    """Say which epsilon is proven where a method's setting of that name does not hold; empty where it does."""
    asked = group.settings.get(EPSILON, "none")
    if group.epsilon is None or asked == "none" or tables.epsilon_text(group.epsilon) == tables.epsilon_text(asked):
        return ""
    return f" (proven: {tables.epsilon_text(group.epsilon)})"


def _row_name(comparison: Comparison, group: Group) -> str:
    """Name a group in a sentence."""
    keys = (EPSILON, *comparison.columns)
    parts = [
        f"{name} {_words(group) if key == EPSILON else group.label(key)}"
        for key, name in zip(keys, _names(keys), strict=True)
        if group.label(key) != "-" and len({other.label(key) for other in comparison.groups}) > 1
    ]
    return group.title + (f" ({', '.join(parts)})" if parts else "")


def _words(group: Group) -> str:
    """Write a group's epsilon in a sentence."""
    simulated = f", {SIMULATION}" if group.has_budget and group.noise_source == "seeded" else ""
    return f"{tables.epsilon_text(group.epsilon)}{simulated}"


def _against(comparison: Comparison) -> str:
    """Name the row, or the rows, that the others are compared with."""
    references = sorted(set(comparison.references.values()))
    if len(references) == 1:
        return _row_name(comparison, comparison.groups[references[0]])
    return f"{comparison.against} of the same epsilon and other columns"


def _interval(score: str, difference: Difference) -> str:
    """Write an interval."""
    if math.isinf(difference.low):
        return "-"
    return f"[{_signed(score, difference.low)}, {_signed(score, difference.high)}]"


def _signed(score: str, difference: float) -> str:
    """Write a difference in points, of a loss in nats."""
    return f"{difference:+.3f}" if score in LOSSES else f"{100 * difference:+.1f}"


def _p_text(p: float | None) -> str:
    if p is None:
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _numbers(tested: tuple[Difference, float | None] | None) -> list[object]:
    """Return a difference's numbers for a CSV line; empty where there is none."""
    if tested is None:
        return [""] * 5
    difference, p_holm = tested
    values = (difference.mean, difference.low, difference.high, difference.p, p_holm)
    return ["" if value is None or math.isinf(value) else value for value in values]


def _reported(comparison: Comparison) -> str:
    """Say which rounds the scores are of."""
    counts = {group.settings.get("evaluation.last_rounds", 1) for group in comparison.groups}
    return "last round" if counts == {1} else f"mean of the last {', '.join(map(str, sorted(counts)))} rounds"


def _seeds_note(comparison: Comparison) -> str:
    """Say how many seeds a cell has."""
    counts = sorted({len(group.arms) for group in comparison.groups})
    return f"Seeds: {' to '.join(map(str, [counts[0], counts[-1]][: len(counts)]))}."
