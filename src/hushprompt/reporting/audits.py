"""What attacks on a run found, from the `audit/audit.json` that `hushprompt audit RUN` leaves in its folder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from hushprompt.privacy.statements import AUDIENCES, beside_epsilon, noise_source_of, number, told
from hushprompt.reporting.blocks import Block, PageTable, Words
from hushprompt.reporting.tables import epsilon_text
from hushprompt.runs.reader import FinishedRun
from hushprompt.words import counted

HEADER = ("arm", "audience", "proven epsilon", "measured, mechanism", "measured, training", "strongest attack, AUC")
NO_POWER = Markup('<strong class="whole">NO POWER</strong>')


def audit_blocks(runs: Sequence[FinishedRun]) -> list[Block]:
    """Return claims, measured lower bounds and attacks of every audited run; empty where none is audited."""
    rows, contradicted, statements = [], [], []
    for run, budget, one in _audiences(runs):
        who = str(one.get("audience", ""))
        claimed = told(one.get("claimed", {}), noise_source_of(run.privacy or {}))
        bounds = [_largest(one.get("mechanism", [])), _largest([c["result"] for c in one.get("canaries", [])])]
        name = f"{budget.get('arm')}, {run.name}"
        epsilon = number(claimed.get("epsilon"))
        power = _power(run.audit or {}, who)
        cells = [_bound(bounds[0], power["mechanism"]), _bound(bounds[1], power["end_to_end"])]
        simulated = beside_epsilon(claimed.get("noise_source")) if math.isfinite(epsilon) else ""
        proven = "-" if math.isnan(epsilon) else f"{epsilon_text(epsilon)}{simulated}"
        rows.append([name, AUDIENCES.get(who, who), proven, *cells, _strongest(one, power["attack"])])
        statements.append(f"{name}, {who}: {claimed.get('statement', '')}")
        by_attacks = _largest([attack["bound"] for attack in one.get("attacks", []) if attack.get("bound")])
        if any(bound > epsilon for bound in (*bounds, by_attacks)):
            contradicted.append(f"{name}, for {who}")
    if not rows:
        return []
    blocks: list[Block] = [
        PageTable("Lower bounds on epsilon hold with 95 %, each on its own; intervals are 95 %", HEADER, rows, "lines")
    ]
    if contradicted:
        words = "More was measured than is proven, so either the code is wrong or chance has spoken"
        blocks.append(Words(f"{words}: {'; '.join(contradicted)}. Repeat with another seed.", "warning"))
    blocks.append(Words(_of_power(runs)))
    blocks += [Words(text) for text in (*_of_crafted_prompts(runs), *_of_secrets(runs))]
    return [*blocks, *map(Words, dict.fromkeys(statements))]


def _audiences(
    runs: Sequence[FinishedRun],
) -> Iterator[tuple[FinishedRun, Mapping[str, Any], Mapping[str, Any]]]:
    """Return run, budget and audience of everything that was audited."""
    for run in runs:
        for budget in (run.audit or {}).get("budgets", []):
            for one in budget.get("audiences", []):
                yield run, budget, one


def _power(audit: Mapping[str, Any], audience: str) -> dict[str, bool | None]:
    """Tell of each kind of measurement whether it found anything without noise; None where that is not known."""
    found = (audit.get("power") or {}).get(audience) or {}
    low = number((found.get("auc") or {}).get("low"))
    kinds = {kind: number(found.get(kind)) for kind in ("mechanism", "end_to_end")}
    known = {kind: None if math.isnan(value) else value > 0 for kind, value in kinds.items()}
    return {**known, "attack": None if math.isnan(low) else low > 0.5}


def _of_power(runs: Sequence[FinishedRun]) -> str:
    """Say what NO POWER means, or that power is not known."""
    powers = [_power(run.audit or {}, str(one.get("audience", ""))) for run, _, one in _audiences(runs)]
    if any(value is False for power in powers for value in power.values()):
        return (
            "NO POWER: this measurement found nothing even where nothing protects, so that it finds nothing says "
            "nothing about other budgets."
        )
    if all(value is None for power in powers for value in power.values()):
        return "Power is unknown: nothing was measured without noise, so it is not known what these could have found."
    return "Every measurement found something where nothing protects, so it has the power to find something elsewhere."


def _of_crafted_prompts(runs: Sequence[FinishedRun]) -> Iterator[str]:
    """Say what a malicious server's prompts find in one client's clear sums: their power against noisy ones."""
    for run in runs:
        for budget in (run.audit or {}).get("budgets", []):
            found = (budget.get("clear_sums") or {}).get("auc") or {}
            auc, low, high = (number(found.get(key)) for key in ("value", "low", "high"))
            if math.isnan(auc):
                continue
            text = f"{budget.get('arm')}, {run.name}: prompts that a server crafts, AUC on clear sums {auc:.3f}"
            ends = "" if math.isnan(low) or math.isnan(high) else f" [{low:.3f}, {high:.3f}]"
            is_seen = any(one.get("audience") == "server" for one in budget.get("audiences", []))
            gets = "This server does not get such sums" if is_seen else "This server gets such sums and is trusted"
            blind = "" if budget.get("crafted_has_power") else " NO POWER: what they find in noisy sums says nothing."
            yield f"{text}{ends}. {gets}.{blind}"


def _of_secrets(runs: Sequence[FinishedRun]) -> Iterator[str]:
    """Say how much prompts tell of secrets in answers."""
    for run, budget, one in _audiences(runs):
        if one.get("secrets"):
            name = f"{budget.get('arm')}, {run.name}, {one.get('audience')}"
            yield f"{name}: secrets in answers, {exposure_text(one['secrets'])}"


def exposure_text(found: Mapping[str, Any]) -> str:
    """Say how much a prompt tells of secrets, from `secrets` of `audit.json`."""
    before, after = found["before"], found["after"]
    return (
        f"exposure up to {max(after):.1f} of {found['most']:.1f} bits, mean {sum(after) / len(after):.1f}, "
        f"{sum(before) / len(before):.1f} before training ({counted(len(after), 'secret')}, each in "
        f"{counted(found['num_repeats'], 'training example')}; p = {found['p_value']:.2g} that a prompt which never "
        "saw them tells as much). Exposure is one attack, and no bound on epsilon."
    )


def _largest(results: Sequence[Mapping[str, Any]]) -> float:
    """Return the largest lower bound; NaN where nothing was measured."""
    return max((number(result.get("epsilon_lower_bound")) for result in results), default=math.nan)


def _bound(value: float, has_power: bool | None) -> str:
    if math.isnan(value):
        return "-"
    return _marked(f"at least {value:.3g}", has_power)


def _strongest(one: Mapping[str, Any], has_power: bool | None) -> str:
    """Name the attack with the largest area under the ROC curve, with its interval; one half is guessing."""
    attacks = [(number((a.get("auc") or {}).get("value")), a) for a in one.get("attacks", [])]
    known = [found for found in attacks if math.isfinite(found[0])]
    if not known:
        return "-"
    auc, attack = max(known, key=lambda found: found[0])
    low, high = (number(attack["auc"].get(end)) for end in ("low", "high"))
    interval = "" if math.isnan(low) or math.isnan(high) else f" [{low:.3f}, {high:.3f}]"
    return _marked(f"{auc:.3f}{interval} ({attack.get('attack')})", has_power)


def _marked(text: str, has_power: bool | None) -> str:
    """Add to a measurement that it could not have found anything."""
    return Markup("{} {}").format(text, NO_POWER) if has_power is False else text
