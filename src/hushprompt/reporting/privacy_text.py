"""The privacy statement in words, from `privacy.json` alone: epsilon never without what gives it meaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from hushprompt.privacy.statements import AUDIENCES, in_plain_words
from hushprompt.reporting import meaning
from hushprompt.reporting.blocks import details, missing, paragraph
from hushprompt.reporting.markup import tag
from hushprompt.reporting.runs import number
from hushprompt.reporting.series import Series

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
