"""The privacy statement of a page, from `privacy.json` alone: epsilon never without what gives it meaning."""

from __future__ import annotations

from collections.abc import Sequence

from hushprompt.privacy.statements import AUDIENCES, in_plain_words
from hushprompt.reporting.blocks import Block, Definitions, Fold, Guarantees, missing
from hushprompt.reporting.pooling import Group
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
