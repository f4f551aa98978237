"""Tables for a terminal, made from records alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hushprompt.privacy.statements import AUDIENCES, statement_lines
from hushprompt.runs.records import ArmSummary


def has_new_classes(arms: Sequence[ArmSummary]) -> bool:
    """Whether the arms were scored on classes that nobody trained on."""
    return any(arm.new is not None for arm in arms)


def arm_title(arm: ArmSummary) -> str:
    """Name an arm as a reader would."""
    return f"{arm.title} without noise" if arm.epsilon == float("inf") else arm.title


def epsilon_text(epsilon: float | None) -> str:
    """Write an epsilon; "-" where an arm has used no private data."""
    if epsilon is None:
        return "-"
    return "inf" if epsilon == float("inf") else f"{epsilon:.3g}"


def captions(arms: Sequence[ArmSummary], privacy: dict[str, Any]) -> list[str]:
    """Return the lines that must stand under every table: what its epsilon means, and what it does not cover."""
    last = privacy["arms"][-1]
    count = arms[-1].num_last_rounds
    when = "last round" if count == 1 else f"mean of the last {count} rounds"
    compete = "all base classes compete" if has_new_classes(arms) else "all classes compete"
    lines = [
        f"Seed {arms[-1].seed}, {when}, means over clients. local: a client's own images; neighbor: the other "
        f"clients'; {compete}. epsilon -: no private data used; inf: clipped, no noise, no guarantee.",
        f"epsilon is for {AUDIENCES[arms[-1].audience]}; delta, unit, neighbors, sampling and accountant as follows.",
    ]
    stopped = [f"{arm.arm} ended after {arm.num_rounds} rounds: {arm.stopped}." for arm in arms if arm.stopped]
    if has_new_classes(arms):
        lines.insert(
            1,
            "base classes: all clients' images, among themselves; new classes: images of classes that nobody trained "
            "on, among themselves.",
        )
    if "evaluation_images" in privacy:
        stopped.append(f"evaluation images: {privacy['evaluation_images']}")
    return [*lines, *stopped, *statement_lines(last), privacy["server"], privacy["several_arms"]]
