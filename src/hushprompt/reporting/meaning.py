"""What an epsilon means, for many arms at once: said once where it is the same for all."""

from __future__ import annotations

from collections.abc import Sequence


def together(arms: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Say what all arms have in common, then by name what only some have.

    Args:
        arms: name and clauses of each arm; clauses of one name that differ in their last word become one.

    >>> together([("A", ["delta 1", "Poisson"]), ("B", ["delta 1", "budget 1"]), ("B", ["delta 1", "budget 2"])])
    'delta 1; A: Poisson; B: budget 1 or 2'
    """
    common = [clause for clause in arms[0][1] if all(clause in clauses for _, clauses in arms)]
    own: dict[str, dict[str, list[str]]] = {}
    for name, clauses in arms:
        for words, _, last in (clause.rpartition(" ") for clause in clauses if clause not in common):
            values = own.setdefault(name, {}).setdefault(words, [])
            if last not in values:
                values.append(last)
    parts = [", ".join(common)]
    for name, said in own.items():
        parts.append(
            f"{name}: " + ", ".join(f"{words} {' or '.join(values)}".strip() for words, values in said.items())
        )
    return "; ".join(part for part in parts if part)
