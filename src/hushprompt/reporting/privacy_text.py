"""The privacy statement in words, from `privacy.json` alone: epsilon never without what gives it meaning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from hushprompt.reporting import meaning
from hushprompt.reporting.blocks import details, missing, paragraph
from hushprompt.reporting.markup import tag
from hushprompt.reporting.runs import number
from hushprompt.reporting.series import Series
from hushprompt.reporting.tables import AUDIENCES

FALSE_ALARMS = 0.01
"""Rate of false accusations at which a guarantee is put into plain words."""
MAX_OPEN = 6
"""Statements that stand open; more than these are folded up."""


def epsilon_means(series: Sequence[Series], whose: str = "") -> Markup:
    """Say what the epsilon of a table or figure stands for: audience, delta, unit, relation, sampling, accountant.

    Args:
        series: whose epsilon is shown.
        whose: the audience in words, where the figure shows more than the budget's own.
    """
    arms: list[tuple[str, list[str]]] = []
    unknown = []
    for s in series:
        if not s.has_budget:
            continue
        guarantee = _guarantees(s).get(s.first.result.audience)
        if guarantee is None:
            unknown.append(s.name)
        else:
            audience = whose or AUDIENCES.get(s.first.result.audience, s.first.result.audience)
            arms.append((s.family, _clauses(audience, guarantee)))
    lines = [f"epsilon is {meaning.together(arms)}."] if arms else []
    if unknown:
        lines.append(f"No record says what the epsilon of {', '.join(unknown)} is for: read it as no guarantee.")
    return tag("div", *(paragraph(line) for line in lines), class_="note meaning")


def statements(series: Sequence[Series]) -> list[Markup]:
    """Return the guarantee of every trained arm for every audience, then what no guarantee covers."""
    every = [_statement(s) for s in series if s.learns]
    parts = every[-MAX_OPEN:]
    if len(every) > MAX_OPEN:
        parts.append(details(f"The other {len(every) - MAX_OPEN} arms", *every[:-MAX_OPEN]))
    notes = _notes(series)
    if notes:
        parts.append(tag("h3", "For every arm"))
        parts.append(tag("dl", *(tag("div", tag("dt", name), tag("dd", text)) for name, text in notes)))
    return parts or [missing("No arm was trained on private data.")]


def _statement(s: Series) -> Markup:
    """Return the guarantee of one arm for every audience."""
    guarantees = _guarantees(s)
    if not guarantees:
        return missing(f"{s.name}: the run folder has no privacy.json for it, so nothing is claimed.")
    items = [
        tag(
            "li",
            tag("strong", f"For {AUDIENCES.get(who, who)}: "),
            f"{guarantee.get('statement', '')} ",
            tag("em", in_plain_words(guarantee)),
        )
        for who, guarantee in guarantees.items()
    ]
    return tag("div", tag("h3", s.name), tag("ul", *items), *_participation(s), class_="statement")


def _participation(s: Series) -> list[Markup]:
    """Say how many clients take part in a round, where not all do."""
    words = (_arm(s).get("participation") or {}).get("statement")
    return [paragraph(str(words), "note")] if words else []


def in_plain_words(guarantee: Mapping[str, Any]) -> str:
    """Say what the best possible test for a single example could find out.

    A test on an (epsilon, delta)-DP output with false alarm rate a finds what it looks for with probability at most
    min(e^eps a + delta, 1 - e^-eps (1 - delta - a)).

    Source: Kairouz, Oh, Viswanath 2015 (arXiv:1311.0776), Theorem 2.1.
    """
    epsilon, delta = number(guarantee.get("epsilon")), number(guarantee.get("delta"))
    unit = str(guarantee.get("privacy_unit", "example"))
    if math.isnan(epsilon) or math.isnan(delta):
        return ""
    if math.isinf(epsilon):
        return f"In plain words: nothing limits what can be learned about a single {unit}."
    releases = guarantee.get("releases") or {}
    if releases.get("num_steps") == 0 or releases.get("noise_multiplier") == "inf":
        return f"In plain words: this audience sees nothing that depends on any {unit}."
    power = detection_rate(epsilon, delta, FALSE_ALARMS)
    little = " That is next to no protection by this bound alone." if power > 0.95 else ""
    return (
        f'In plain words: a test that wrongly says "it was used" in {FALSE_ALARMS:.0%} of cases notices the use of a '
        f"single {unit} in at most {power:.1%} of cases, whatever else the tester knows.{little}"
    )


def detection_rate(epsilon: float, delta: float, false_alarms: float) -> float:
    """Return the highest detection rate that (epsilon, delta) leaves to a test with a rate of false alarms.

    >>> round(detection_rate(1.0, 0.0, 0.01), 4), detection_rate(1000.0, 0.0, 0.01)
    (0.0272, 1.0)
    """
    first = math.exp(min(epsilon, 700.0)) * false_alarms + delta
    second = 1 - math.exp(-epsilon) * (1 - delta - false_alarms)
    return max(0.0, min(first, second, 1.0))


def _arm(s: Series) -> Mapping[str, Any]:
    """Return a series' entry in `privacy.json`; empty where the run has none."""
    arms: list[Mapping[str, Any]] = (s.first.run.privacy or {}).get("arms", [])
    return next((arm for arm in arms if arm.get("arm") == s.first.result.label), {})


def _guarantees(s: Series) -> dict[str, Mapping[str, Any]]:
    """Return each audience's guarantee of a series; empty where none is on record."""
    return dict(_arm(s).get("audiences", {}))


def _clauses(audience: str, guarantee: Mapping[str, Any]) -> list[str]:
    """Write everything about a guarantee but epsilon itself."""
    steps = (guarantee.get("releases") or {}).get("num_steps", "an unknown number of")
    return [
        f"for {audience}",
        f"at delta = {number(guarantee.get('delta')):g}",
        f"for one {guarantee.get('privacy_unit')} of one client",
        f"neighbors by {guarantee.get('neighboring_relation')}",
        *str(guarantee.get("sampling")).split(", "),
        f"{steps} releases",
        f"accountant: {guarantee.get('accountant')}",
    ]


def _notes(series: Sequence[Series]) -> list[tuple[str, str]]:
    """Return the sentences of `privacy.json` that hold for a whole run, each once."""
    found: dict[tuple[str, str], None] = {}
    for s in series:
        for member in s.members:
            for key, value in (member.run.privacy or {}).items():
                if isinstance(value, str):
                    found[key.replace("_", " "), value] = None
    return list(found)
