"""Tables for a terminal, made from records alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hushprompt.privacy.statements import AUDIENCES, beside_epsilon, clauses, noise_source_of, number, statement_lines
from hushprompt.runs.records import ArmSummary
from hushprompt.words import counted


def has_new_classes(arms: Sequence[ArmSummary]) -> bool:
    """Whether the arms were scored on classes that nobody trained on."""
    return any(arm.new is not None for arm in arms)


def epsilon_text(epsilon: float | None) -> str:
    """Write an epsilon; "-" where an arm has used no private data."""
    if epsilon is None:
        return "-"
    return "inf" if epsilon == float("inf") else f"{epsilon:.3g}"


def epsilon_column(arms: Sequence[tuple[float | None, str | None]]) -> tuple[str, list[str]]:
    """Write the column of epsilons: its title and cells, one of which says "simulation" where noise was seeded.

    Args:
        arms: epsilon and noise source of each.

    >>> epsilon_column([(None, None), (2.0, "seeded")])
    ('epsilon (simulation)', ['-', '2'])
    >>> epsilon_column([(2.0, "secure"), (2.0, "seeded")])
    ('epsilon', ['2', '2 (simulation)'])
    """
    texts = [epsilon_text(epsilon) for epsilon, _ in arms]
    simulated = [
        beside_epsilon(source) if epsilon is not None and math.isfinite(epsilon) else None for epsilon, source in arms
    ]
    told = {word for word in simulated if word is not None}
    if len(told) == 1:
        return f"epsilon{told.pop()}", texts
    return "epsilon", [f"{text}{word or ''}" for text, word in zip(texts, simulated, strict=True)]


def means_over_some(arms: Sequence[tuple[str, ArmSummary]]) -> list[str]:
    """Say over how many clients a mean is where some of them have no images to score; nothing where all have.

    Args:
        arms: name and result of each; seeds of one arm share a name.
    """
    found: dict[str, dict[str, None]] = {}
    for name, arm in arms:
        for score in ("local", "neighbor"):
            values = [number(client[score]) for client in arm.per_client if score in client]
            known = sum(map(math.isfinite, values))
            if values and not known:
                found.setdefault(f"{score} -: no client has such images", {})[name] = None
            elif known < len(values):
                words = f"{score}: mean over {known} of {len(values)} clients, as the others have no such images"
                found.setdefault(words, {})[name] = None
    everybody = {name for name, _ in arms}
    return [
        f"{words}." if set(names) == everybody else f"{words} ({', '.join(names)})." for words, names in found.items()
    ]


def captions(arms: Sequence[ArmSummary], privacy: dict[str, Any]) -> list[str]:
    """Return the lines that must stand under every table: what its epsilon means, and what it does not cover."""
    last, simulated = privacy["arms"][-1], beside_epsilon(noise_source_of(privacy))
    count = arms[-1].num_last_rounds
    when = "last round" if count == 1 else f"mean of the last {count} rounds"
    compete = "all base classes compete" if has_new_classes(arms) else "all classes compete"
    if arms[-1].is_open:
        compete = "accuracies are shares of answers that are one of the true ones"
    lines = [
        f"Seed {arms[-1].seed}, {when}, means over clients. local: a client's own images; neighbor: the other "
        f"clients'; {compete}. epsilon -: no private data used; inf: clipped, no noise, no guarantee.",
        f"epsilon{simulated} is for {AUDIENCES[arms[-1].audience]}; delta, unit, neighbors, sampling and accountant as "
        "follows.",
    ]
    stopped = [
        f"{arm.arm} ended after {counted(arm.num_rounds, 'round')}: {arm.stopped}." for arm in arms if arm.stopped
    ]
    if has_new_classes(arms):
        lines.insert(
            1,
            "base classes: all clients' images, among themselves; new classes: images of classes that nobody trained "
            "on, among themselves.",
        )
    if "evaluation_images" in privacy:
        stopped.append(f"evaluation images: {privacy['evaluation_images']}")
    return [
        *lines,
        *means_over_some([("", arm) for arm in arms]),
        *stopped,
        *_other_meanings(privacy["arms"], arms[-1].audience),
        *statement_lines(last),
        privacy["server"],
        privacy["several_arms"],
    ]


def _other_meanings(entries: Sequence[Mapping[str, Any]], audience: str) -> list[str]:
    """Return the statements of arms whose epsilon means something else than the last one's, such as other sampling."""
    due = clauses(audience, entries[-1]["audiences"].get(audience, {}))
    return [
        f"{entry['arm']}: for {AUDIENCES[audience]}: {guarantee['statement']}"
        for entry in entries[:-1]
        for guarantee in [entry["audiences"].get(audience, {})]
        if 0 < number(guarantee.get("epsilon")) < math.inf and clauses(audience, guarantee) != due
    ]
