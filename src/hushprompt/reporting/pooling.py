"""The one pooled table: arms of finished runs that differ in nothing but the seed are one group, for every view."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hushprompt import checks
from hushprompt.config.overrides import flat, label_of
from hushprompt.errors import ConfigError, DataError
from hushprompt.privacy.statements import of_a_simulation
from hushprompt.reporting.styles import Style, named
from hushprompt.runs.identity import LETTERS, NOT_RECORDED, is_location
from hushprompt.runs.reader import FinishedRun
from hushprompt.runs.records import ArmSummary

SCORES = {
    "local": "local", "neighbor": "neighbor", "harmonic_mean": "harmonic mean", "worst_client": "worst client",
}  # fmt: skip
"""Titles of the scores that every table has."""
NEW_SCORES = {"base": "base classes", "new": "new classes", "base_new_harmonic_mean": "harmonic mean"}
"""Only where some classes are kept from training."""
MEASURES = {
    "loss": "loss per token", "neighbor_loss": "neighbor loss", "anls": "ANLS", "neighbor_anls": "neighbor ANLS",
    "vqa_accuracy": "VQA accuracy", "neighbor_vqa_accuracy": "neighbor VQA accuracy",
}  # fmt: skip
"""Only where examples have questions."""
LOSSES = ("loss", "neighbor_loss")
"""In nats a token: no shares, so not written in percent, and less is better."""
UNSEEN = ("seed", "runtime", "references", "data.download", "evaluation.every")
"""Settings that tell no two arms apart: the seed is what is averaged over, the rest never changes an arm's result."""
TRAINING = ("sampling", "training", "privacy")
"""Sections that mean nothing to a method that learns nothing."""
INCOMPARABLE = (
    "data", "evaluation", "privacy.delta", "privacy.audience", "privacy.neighboring_relation", "privacy.privacy_unit",
)  # fmt: skip
"""Settings that give a number, or its epsilon, another meaning; where one differs, each needs a table of its own."""
SAME_CLIENTS = ("backbone", "data", "evaluation", "features", "partition")
"""Settings under which equal seeds have equal clients, images and model."""
METHOD, EPSILON = "method.name", "privacy.epsilon"


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; the deviation is NaN for one seed."""

    mean: float
    std: float

    def text(self, digits: int = 1, factor: float = 100) -> str:
        """Write a spread of fractions in percent, or times another factor; "-" where nothing is known.

        >>> Spread(0.512, 0.001).text(), Spread(0.5, math.nan).text()
        ('51.2 ± 0.1', '50.0')
        """
        if math.isnan(self.mean):
            return "-"
        deviation = "" if math.isnan(self.std) else f" ± {factor * self.std:.{digits}f}"
        return f"{factor * self.mean:.{digits}f}{deviation}"


@dataclass(frozen=True)
class PooledArm:
    """One arm of one run: one seed of a group."""

    run: FinishedRun
    summary: ArmSummary
    settings: Mapping[str, Any]
    """Everything that made it, by dotted key, but for the seed."""
    privacy: Mapping[str, Any]
    """Its entry in `privacy.json`; empty where there is none."""

    @property
    def rounds(self) -> Sequence[Mapping[str, Any]]:
        """Records of the arm, in order."""
        return self.run.rounds.get(self.summary.arm, [])

    @property
    def guarantees(self) -> Mapping[str, Mapping[str, Any]]:
        """Guarantee of each audience; empty where none is on record."""
        return dict(self.privacy.get("audiences", {}))

    @property
    def noise_source(self) -> str:
        """Where its noise came from; a config that does not say so is from a time when all of it was seeded."""
        return str(self.run.config.get("privacy", {}).get("noise_source", "seeded"))

    def score(self, name: str) -> float:
        """Return a score as a fraction; NaN where it is not known."""
        value = getattr(self.summary, name)
        return math.nan if value is None else float(value)


@dataclass(frozen=True)
class Group:
    """One method at one budget in one setting, over seeds."""

    arms: tuple[PooledArm, ...]
    """Sorted by seed, each seed once."""
    name: str
    """Unique among the groups that were pooled together."""
    family: str
    """Name without the budget; the points of one privacy-utility curve share it."""
    style: Style

    @property
    def first(self) -> PooledArm:
        """The arm with the smallest seed."""
        return self.arms[0]

    @property
    def settings(self) -> Mapping[str, Any]:
        """What all arms have in common."""
        return self.first.settings

    @property
    def title(self) -> str:
        """The method, as a table calls it."""
        return self.first.summary.title

    @property
    def epsilon(self) -> float | None:
        """Proven epsilon, the largest over seeds; None where nothing private was used, inf without noise."""
        return largest_epsilon(self.arms)

    @property
    def noise_source(self) -> str:
        """Where noise came from: "seeded" makes every epsilon that of a simulation."""
        return self.first.noise_source

    @property
    def has_budget(self) -> bool:
        """True if a finite epsilon is proven."""
        return self.epsilon is not None and math.isfinite(self.epsilon)

    @property
    def learns(self) -> bool:
        """True if the arm was trained."""
        return self.epsilon is not None

    @property
    def guarantee(self) -> Mapping[str, Any] | None:
        """Guarantee of the audience that epsilon is for; None where none is on record."""
        return self.first.guarantees.get(self.first.summary.audience)

    def by_seed(self, score: str) -> dict[int, float]:
        """Return a score of every seed, as a fraction."""
        return {arm.run.seed: arm.score(score) for arm in self.arms}

    def percents(self, score: str) -> list[float]:
        """Return a score in percent for every seed, NaN left out."""
        return [100 * value for value in self.by_seed(score).values() if math.isfinite(value)]

    def spread(self, score: str) -> Spread:
        """Return mean and standard deviation of a score over the seeds that have it."""
        values = [value for value in self.by_seed(score).values() if math.isfinite(value)]
        mean = statistics.fmean(values) if values else math.nan
        return Spread(mean, statistics.stdev(values) if len(values) > 1 else math.nan)

    def written(self, score: str) -> str:
        """Write mean and deviation of a score over the seeds, a loss as it is and any other in percent."""
        return self.spread(score).text(digits=3, factor=1) if score in LOSSES else self.spread(score).text()

    def label(self, key: str) -> str:
        """Write what a setting is here; "-" where there is none."""
        return label_of(self.settings[key]) if key in self.settings else "-"


def pool(runs: Iterable[FinishedRun]) -> list[Group]:
    """Put arms together whose settings are the same but for the seed, whichever run they come from.

    Each seed of a group counts once, as equal settings and an equal seed give equal results. Groups that differ in the
    budget alone stand beside each other, by epsilon; else they stand in order of appearance.
    """
    groups = pool_strictly(runs, is_strict=False)
    families = list(dict.fromkeys(group.family for group in groups))
    return sorted(groups, key=lambda group: (families.index(group.family), group.epsilon or 0.0))


def pool_strictly(runs: Iterable[FinishedRun], ignore: Sequence[str] = (), *, is_strict: bool = True) -> list[Group]:
    """Do the same for tables that compare: in order of appearance, and with no result that contradicts another.

    Args:
        runs: the runs.
        ignore: dotted keys or sections that are not looked at.
        is_strict: False: where two arms contradict each other, the first counts.

    Raises:
        DataError: two runs of the same settings and seed have other results.
    """
    seeds: dict[str, dict[int, list[PooledArm]]] = {}
    for arm in (arm for run in by_content(list(runs)) for arm in arms_of(run, ignore)):
        key = json.dumps([arm.summary.method, arm.settings], sort_keys=True)
        seeds.setdefault(key, {}).setdefault(arm.run.seed, []).append(arm)
    for first, *others in (same for found in seeds.values() for same in found.values()):
        for other in others if is_strict else ():
            _check_same(first, other)
    members = [tuple(found[seed][0] for seed in sorted(found)) for found in seeds.values()]
    titles = [(arms[0].summary.title, largest_epsilon(arms)) for arms in members]
    names = named([{**arms[0].settings, "method": arms[0].summary.method} for arms in members], titles)
    return [Group(arms, *name) for arms, name in zip(members, names, strict=True)]


def by_content(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Return runs whose configs tell data and models apart by content, as far as that is on record.

    Where all runs have an identity, settings that say where files lie are left out. Runs with the same settings and
    other data, or another model, get `data.fingerprint`, or `backbone.fingerprint`.
    """
    if all(run.identity for run in runs):
        runs = [dataclasses.replace(run, config=_without_locations(run.config)) for run in runs]
    for section in ("data", "backbone"):
        found: dict[str, set[str]] = {}
        for run in runs:
            found.setdefault(_content_key(run, section), set()).add(_fingerprint(run, section))
        runs = [
            run if len(found[_content_key(run, section)] - {NOT_RECORDED}) < 2 else _with_fingerprint(run, section)
            for run in runs
        ]
    return list(runs)


def _content_key(run: FinishedRun, section: str) -> str:
    """Return the settings under which runs should have the same data, or model."""
    return json.dumps([run.config.get(section), run.config.get("evaluation", {}).get("split")], sort_keys=True)


def _fingerprint(run: FinishedRun, section: str) -> str:
    """Return the first letters of the fingerprint of a run's data, or model."""
    if run.identity is None:
        return NOT_RECORDED
    return (run.identity.data_digest if section == "data" else run.identity.backbone)[:LETTERS] or NOT_RECORDED


def _with_fingerprint(run: FinishedRun, section: str) -> FinishedRun:
    table = {**run.config.get(section, {}), "fingerprint": _fingerprint(run, section)}
    return dataclasses.replace(run, config={**run.config, section: table})


def _without_locations(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without settings that say where data and weights lie."""
    tables = {
        name: {key: value for key, value in config[name].items() if not is_location(f"{name}.{key}", value)}
        for name in ("data", "backbone")
        if name in config
    }
    return {**config, **tables}


def arms_of(run: FinishedRun, ignore: Sequence[str] = ()) -> list[PooledArm]:
    """Return the arms of a run, each with the settings that made it."""
    references = run.config.get("references", [])
    changes = [*references, {}]
    if len(references) != len(run.arms) - 1:  # a federation has zero-shot beside its own method, and no references
        own = run.config.get("method", {}).get("name")
        changes = [{} if own in (None, arm.method) else {"method": {"name": arm.method}} for arm in run.arms]
    entries = (run.privacy or {}).get("arms", [])
    if len(entries) != len(run.arms):
        by_label = {entry.get("arm"): entry for entry in entries}
        entries = [by_label.get(summary.arm, {}) for summary in run.arms]
    return [
        PooledArm(run, summary, arm_settings(run.config, change, ignore, is_trained=summary.epsilon is not None), entry)
        for summary, change, entry in zip(run.arms, changes, entries, strict=True)
    ]


def arm_settings(
    config: Mapping[str, Any], reference: Mapping[str, Any], ignore: Sequence[str], *, is_trained: bool
) -> dict[str, Any]:
    """Return an arm's settings by dotted key, without the seed: the run's, changed as its reference says.

    Args:
        config: tables of a `config.toml`.
        reference: the arm's entry in `references`; empty for the method itself.
        ignore: dotted keys or sections to leave out.
        is_trained: whether the arm learns anything.
    """
    values = {**config, "method": reference.get("method", config.get("method"))}
    epsilon = reference.get("epsilon", "none")
    if epsilon != "none":
        multipliers = dict.fromkeys(("noise_multiplier_local", "noise_multiplier_global"), "none")
        values["privacy"] = {**config.get("privacy", {}), **multipliers, "epsilon": epsilon}
    unseen = [*UNSEEN, *ignore, *(() if is_trained else TRAINING)]
    return {key: value for key, value in flat(values).items() if not is_below(key, unseen)}


def measured(groups: Sequence[Group]) -> dict[str, str]:
    """Return the measures of answers that any group has, with their titles; none where examples have classes."""
    return {score: title for score, title in MEASURES.items() if any(group.percents(score) for group in groups)}


def largest_epsilon(arms: Sequence[PooledArm]) -> float | None:
    """Return the largest proven epsilon; None where nothing private was used."""
    return max((arm.summary.epsilon for arm in arms if arm.summary.epsilon is not None), default=None)


def split(groups: Sequence[Group], by: Sequence[str]) -> list[tuple[str, list[Group]]]:
    """Make one table for each value of the settings `by`, dotted keys or sections; return a title for each.

    Arms that have none of these settings, such as those that learn nothing and have no budget, go into every table.

    Raises:
        ConfigError: no group has such a setting.
    """
    known = sorted({key for each in groups for key in each.settings})
    keys = [key if any(is_below(other, [key]) for other in known) else find_key(key, known) for key in by]
    separating = [key for key in varying(groups) if is_below(key, keys) and len(_values(groups, key)) > 1]
    titles = [", ".join(f"{key} = {each.label(key)}" for key in separating if key in each.settings) for each in groups]
    tables = [title for title in dict.fromkeys(titles) if title] or [""]
    return [
        (table, [each for each, title in zip(groups, titles, strict=True) if title in (table, "")]) for table in tables
    ]


def find_key(text: str, keys: Sequence[str]) -> str:
    """Return the dotted key that a whole key or its last parts name.

    Raises:
        ConfigError: none does, or several do.

    >>> find_key("rank", ["method.rank", "privacy.epsilon"])
    'method.rank'
    """
    found = [key for key in keys if key == text or key.endswith(f".{text}")]
    if text in found or len(found) == 1:
        return text if text in found else found[0]
    known = ", ".join(keys)
    raise ConfigError(
        f"{text!r} names {'several settings' if found else 'no setting'} of these arms; known: {known}."
        f"{checks.nearest(text, keys)}"
    )


def check_comparable(groups: Sequence[Group]) -> None:
    """Refuse a table whose numbers do not mean the same.

    Raises:
        ConfigError: groups differ in what is measured or in what epsilon means; the message says in what.
        DataError: nothing says what an epsilon means.
    """
    differing = {key: _values(groups, key) for key in varying(groups) if is_below(key, INCOMPARABLE)}
    differing = {key: values for key, values in differing.items() if len(values) > 1}
    if differing:
        words = "; ".join(f"{key}: {', '.join(values)}" for key, values in differing.items())
        options = " ".join(f"--by {part}" for part in INCOMPARABLE if any(is_below(key, [part]) for key in differing))
        raise ConfigError(
            f"These arms cannot stand in one table, since their numbers do not mean the same ({words}). Make a table "
            f"for each with {options}, or give fewer runs. --ignore KEY says that a difference is none."
        )
    for group in groups:
        if group.learns and group.guarantee is None:
            raise DataError(
                f"{group.first.run.name} has no privacy.json that says what the epsilon of {group.name} is."
            )


def varying(groups: Sequence[Group]) -> list[str]:
    """Return the settings that are not the same in all groups, sorted; one that a group lacks is not the same."""
    keys = sorted({key for each in groups for key in each.settings})
    return [key for key in keys if len({each.label(key) for each in groups}) > 1]


def shown(groups: Sequence[Group]) -> list[str]:
    """Return the settings, beside method and epsilon, that a table must show to tell its groups apart.

    Settings that go with method and epsilon, such as a learning rate for each method, tell nothing apart; `companions`.
    """
    needed: set[str] = set()
    for first, one in enumerate(groups):
        for other in groups[first + 1 :]:
            if all(one.label(key) == other.label(key) for key in (METHOD, EPSILON)):
                needed |= set(varying([one, other]))
    return sorted(needed - {key for key in needed if _is_field_of_choice(key, needed)})


def companions(groups: Sequence[Group]) -> list[str]:
    """Return the settings that vary along with method, epsilon and what is shown."""
    hidden = [key for key in varying(groups) if key not in {METHOD, EPSILON, *shown(groups)}]
    return [key for key in hidden if len(_values(groups, key)) > 1]


def same_clients(one: Group, other: Group) -> bool:
    """Tell whether equal seeds mean equal clients in both groups."""
    return not [key for key in varying([one, other]) if is_below(key, SAME_CLIENTS)]


def is_below(key: str, keys: Sequence[str]) -> bool:
    """Tell whether a dotted key is one of `keys`, or lies in one of them.

    >>> is_below("data.root", ["data"]), is_below("database", ["data"])
    (True, False)
    """
    return any(key == other or key.startswith(f"{other}.") for other in keys)


def _check_same(one: PooledArm, other: PooledArm) -> None:
    """Refuse other results of the same settings and seed."""
    if not any(abs(one.score(score) - other.score(score)) > 1e-9 for score in SCORES):
        return
    versions = ", ".join(str(arm.run.provenance.get("hushprompt")) for arm in (one, other))
    why = f"(hushprompt {versions}; arm {other.summary.arm!r})"
    if one.noise_source == "secure":
        why = "since their noise is secure, and a table counts a seed once"
    raise DataError(
        f"{one.run.name} and {other.run.name} have an arm with the same settings and seed but other results {why}. "
        "Leave one of them out."
    )


def _values(groups: Sequence[Group], key: str) -> list[str]:
    """Return the different values of a setting where there is one."""
    return list(dict.fromkeys(each.label(key) for each in groups if key in each.settings))


def _is_field_of_choice(key: str, keys: set[str]) -> bool:
    """Tell whether a setting is a field of a section whose `name` differs as well, which says enough."""
    section = key.partition(".")[0]
    return f"{section}.name" in keys and key != f"{section}.name"


def simulated(groups: Sequence[Group]) -> str:
    """Say whose epsilon is that of a simulation; empty where none is."""
    budgets = [group for group in groups if group.has_budget]
    names = [group.name for group in budgets if group.noise_source == "seeded"]
    if not names:
        return ""
    return of_a_simulation("Every epsilon here" if len(names) == len(budgets) else f"The epsilon of {', '.join(names)}")
