"""ROC curves of the attacks of audits, from `audit.json`."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hushprompt.privacy.statements import number, of_a_simulation
from hushprompt.reporting.drawing import Drawing, Panel, line, save, tip
from hushprompt.reporting.pooling import Group
from hushprompt.reporting.styles import COLORS, DASHES, GRAY, MARKERS, Style
from hushprompt.runs.reader import FinishedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST_RATE = 1e-4
"""Where the axes of ROC curves begin."""


def roc(runs: Sequence[FinishedRun], _: Sequence[Group]) -> Drawing | None:
    """Draw the ROC curves of the attacks of audited runs."""
    audits = {run.name if len(runs) > 1 else "": run.audit for run in runs if run.audit is not None}
    return roc_of(audits)


def roc_of(audits: Mapping[str, Mapping[str, Any]]) -> Drawing | None:
    """Draw the ROC curves of audits, as `audit.json` has them: a panel for each budget and audience."""
    found = [
        (f"{budget['arm']}, {one['audience']}" + (f", {name}" if name else ""), one["attacks"], one.get("claimed", {}))
        for name, audit in audits.items()
        for budget in audit.get("budgets", [])
        for one in budget.get("audiences", [])
        if any(attack.get("roc") for attack in one.get("attacks", []))
    ]
    if not found:
        return None
    names = dict.fromkeys(attack["attack"] for _, attacks, _ in found for attack in attacks)
    styles = {
        name: Style(COLORS[at % len(COLORS)], MARKERS[at % len(MARKERS)], DASHES[at % len(DASHES)], is_hollow=False)
        for at, name in enumerate(names)
    }
    panels = [
        Panel(
            slug=f"roc-{at}",
            title=title,
            description="True over false-positive rate. "
            + "; ".join(f"{attack['attack']}: AUC {number(attack['auc']['value']):.3f}" for attack in attacks),
            draw=functools.partial(_draw_roc, attacks=attacks, styles=styles),
            height=340,
            margins=(66, 30, 12, 42),
        )
        for at, (title, attacks, _) in enumerate(found)
    ]
    caption = "ROC curves of membership attacks on logarithmic axes: true over false-positive rate; dotted: guessing."
    claims = [claimed for _, _, claimed in found if math.isfinite(number(claimed.get("epsilon")))]
    is_simulated = any(claimed.get("noise_source", "seeded") == "seeded" for claimed in claims)
    note = of_a_simulation("Every epsilon here") if is_simulated else ""
    return Drawing(slug="roc", panels=panels, caption=caption, note=note, legend=list(styles.items()))


def write_roc(audit: Mapping[str, Any], path: Path) -> None:
    """Write the ROC curves of one audit, as `audit.json` has it; nothing where it has no attack."""
    drawing = roc_of({"": audit})
    if drawing is not None:
        save(drawing, path)


def _draw_roc(axes: Axes, attacks: Sequence[Mapping[str, Any]], styles: Mapping[str, Style]) -> None:
    """Draw one curve an attack; what is below the axes lies on their end."""
    limits = (LEAST_RATE, 1.0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set(xlabel="false-positive rate", ylabel="true-positive rate", xlim=limits, ylim=limits)
    ticks = [10.0**exponent for exponent in range(-4, 1)]
    labels = [f"{tick:g}" for tick in ticks]
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
    axes.minorticks_off()
    axes.plot(limits, limits, color=GRAY, linewidth=1, linestyle=(0, (1, 3)))
    for attack in attacks:
        points = [(x, y) for x, y in zip(attack["roc"]["fpr"], attack["roc"]["tpr"], strict=True) if x > 0]
        if points:
            x, y = np.maximum(np.array(points).T, LEAST_RATE)
            style = {**line(styles[attack["attack"]]), "markevery": max(len(x) // 5, 1), "markersize": 5}
            axes.plot(x, y, gid=tip(attack["attack"]), **{**style, "linewidth": 1.6})
