"""What attacks on a run found, from the `audit/audit.json` that `hushprompt audit RUN` leaves in its folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from hushprompt.privacy.statements import AUDIENCES
from hushprompt.reporting.blocks import missing, paragraph, table
from hushprompt.reporting.runs import Run, number
from hushprompt.reporting.tables import epsilon_text

HEADER = ("row", "audience", "proven epsilon", "measured, mechanism", "measured, training", "strongest attack, AUC")


def audit_parts(runs: Sequence[Run]) -> list[Markup]:
    """Return claims, measured lower bounds and attacks of every audited run; empty where none is audited."""
    rows, contradicted, statements = [], [], []
    for run in runs:
        for budget in (run.audit or {}).get("budgets", []):
            for one in budget.get("audiences", []):
                who = str(one.get("audience", ""))
                claimed = one.get("claimed", {})
                bounds = [_largest(one.get("mechanism", [])), _largest([c["result"] for c in one.get("canaries", [])])]
                name = f"{budget.get('arm')}, {run.name}"
                rows.append([name, AUDIENCES.get(who, who), _claim(claimed), *map(_bound, bounds), _strongest(one)])
                statements.append(f"{name}, {who}: {claimed.get('statement', '')}")
                if any(bound > number(claimed.get("epsilon")) for bound in bounds):
                    contradicted.append(f"{name}, for {who}")
    if not rows:
        return []
    parts = [table("Lower bounds on epsilon hold with 95 %, each on its own", HEADER, rows)]
    if contradicted:
        words = "More was measured than is proven, so either the code is wrong or chance has spoken"
        parts.append(missing(f"{words}: {'; '.join(contradicted)}. Repeat with another seed."))
    return [*parts, *(paragraph(statement, "note") for statement in dict.fromkeys(statements))]


def _claim(claimed: Mapping[str, Any]) -> str:
    """Write the proven epsilon."""
    epsilon = number(claimed.get("epsilon"))
    return "-" if math.isnan(epsilon) else epsilon_text(epsilon)


def _largest(results: Sequence[Mapping[str, Any]]) -> float:
    """Return the largest lower bound; NaN where nothing was measured."""
    return max((number(result.get("epsilon_lower_bound")) for result in results), default=math.nan)


def _bound(value: float) -> str:
    """Write a lower bound."""
    return "-" if math.isnan(value) else f"at least {value:.3g}"


def _strongest(one: Mapping[str, Any]) -> str:
    """Name the attack with the largest area under the ROC curve; one half is guessing."""
    attacks = [(number((a.get("auc") or {}).get("value")), str(a.get("attack"))) for a in one.get("attacks", [])]
    known = [found for found in attacks if math.isfinite(found[0])]
    if not known:
        return "-"
    auc, name = max(known)
    return f"{auc:.3f} ({name})"
