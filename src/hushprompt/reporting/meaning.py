"""What an epsilon means, for many arms at once: said once where it is the same for all."""

from __future__ import annotations

from collections.abc import Sequence

from hushprompt.privacy.statements import AUDIENCES, clauses
from hushprompt.reporting.pooling import Group


def of_epsilon(groups: Sequence[Group], whose: str = "") -> list[str]:
    """Say what the epsilon of a table or figure stands for: audience, delta, unit, relation, sampling, accountant.

    Args:
        groups: whose epsilon is shown; those without one are passed over.
        whose: the audience in words, where more than the budget's own is shown.
    """
    arms, unknown = [], []
    for group in groups:
        if not group.learns:
            continue
        if group.guarantee is None:
            unknown.append(group.name)
        else:
            audience = group.first.summary.audience
            arms.append((group.family, clauses(whose or AUDIENCES.get(audience, audience), group.guarantee)))
    lines = [f"epsilon is an upper bound {together(arms)}."] if arms else []
    if unknown:
        lines.append(f"No record says what the epsilon of {', '.join(unknown)} is for: read it as no guarantee.")
    return lines


def together(arms: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Say what all arms have in common, then by name what only some have.

    Args:
        arms: name and clauses of each arm; clauses of one name that differ in their last word become one.

    >>> together([("A", ["delta 1", "Poisson"]), ("B", ["delta 1", "budget 1"]), ("B", ["delta 1", "budget 2"])])
    'delta 1; A: Poisson; B: budget 1 or 2'
    """
    common = [clause for clause in arms[0][1] if all(clause in of_arm for _, of_arm in arms)]
    own: dict[str, dict[str, list[str]]] = {}
    for name, of_arm in arms:
        for words, _, last in (clause.rpartition(" ") for clause in of_arm if clause not in common):
            values = own.setdefault(name, {}).setdefault(words, [])
            if last not in values:
                values.append(last)
    parts = [", ".join(common)]
    for name, said in own.items():
        parts.append(
            f"{name}: " + ", ".join(f"{words} {' or '.join(values)}".strip() for words, values in said.items())
        )
    return "; ".join(part for part in parts if part)
