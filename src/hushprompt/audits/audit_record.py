"""Record of an audit: for each budget and audience the claim, the measurements, and their power."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hushprompt.audits.canaries import CanaryAudit
from hushprompt.audits.exposure import Exposure
from hushprompt.audits.lower_bounds import CONFIDENCE
from hushprompt.audits.mechanism_audit import AuditResult
from hushprompt.audits.metrics import AttackResult, Interval

FORMAT = "hushprompt audit 2"
CRAFTED_POWER = 0.9
"""AUC of crafted prompts on clear sums below which they say nothing about noisy ones."""


@dataclass(frozen=True, kw_only=True)
class AudienceAudit:
    """One audience of one budget."""

    audience: str
    claimed: dict[str, Any]
    """The guarantee as in `privacy.json`, with its statement."""
    mechanism: list[AuditResult]
    """Lower bounds from gradient canaries through sampling, clipping, noise and division."""
    canaries: list[CanaryAudit]
    """Lower bounds from mislabelled images, made-up answers or whole clients, through the whole training."""
    attacks: list[AttackResult]
    """Membership attacks, with lower bounds from the guesses of those whose scores owe nothing to the coins."""
    secrets: Exposure | None = None
    """How much the audience's prompt tells of secrets in answers; None: none were hidden. No bound on epsilon."""

    @property
    def end_to_end(self) -> float:
        """The largest bound from canaries in a training."""
        return max((one.result.epsilon_lower_bound for one in self.canaries), default=0.0)

    @property
    def lower_bound(self) -> float:
        """The largest bound that was measured; those of each kind hold with 95 % together."""
        attacks = [one.bound for one in self.attacks if one.bound is not None]
        return max([self.end_to_end, *(one.epsilon_lower_bound for one in [*self.mechanism, *attacks])])

    @property
    def is_contradicted(self) -> bool:
        """True if more was measured than is claimed: then the code is wrong, or one chance in twenty has happened."""
        return self.lower_bound > float(self.claimed["epsilon"])


@dataclass(frozen=True, kw_only=True)
class BudgetAudit:
    """One budget."""

    arm: str
    epsilon: float | None
    """Target epsilon of the budget's audience; inf without noise, None where the noise was given."""
    audiences: list[AudienceAudit]
    clear_sums: AttackResult | None = None
    """How well crafted prompts tell from one clear sum of a client whether it holds their target: their power. None:
    left out, or no sum held one."""
    crafted_has_power: bool | None = None
    """Whether that AUC is at least 0.9; None where there is none."""


@dataclass(frozen=True, kw_only=True)
class Power:
    """What an audience's measurements find where there is no noise, by kind; None where a kind was left out.

    A kind that finds nothing there says nothing at any budget.
    """

    mechanism: float | None
    """Largest bound from gradient canaries."""
    end_to_end: float | None
    """Largest bound from canaries in a training."""
    attack: str | None
    """The attack whose interval of the AUC begins the highest."""
    auc: Interval | None
    """Its AUC."""
    secrets: float | None = None
    """Chance that a prompt which never saw the secrets tells as much."""

    @property
    def has_power(self) -> dict[str, bool | None]:
        """Whether each kind found something; None where it was left out. Secrets are named where there were some."""
        found = {
            "mechanism": None if self.mechanism is None else self.mechanism > 0,
            "end_to_end": None if self.end_to_end is None else self.end_to_end > 0,
            "attack": None if self.auc is None else (self.auc.low or 0.0) > 0.5,
        }
        return found if self.secrets is None else {**found, "secrets": self.secrets < 1 - CONFIDENCE}


@dataclass(frozen=True, kw_only=True)
class AuditRecord:
    """`audit.json`."""

    format: str
    config_identity: str
    method: str
    privacy_unit: str
    client_id: int
    num_candidates: int
    """Examples of the client that are attacked, or clients where they are the unit."""
    num_shadows: int
    """Federations of each budget, beside those with canaries and secrets."""
    seed: int
    confidence: float
    power: dict[str, Power]
    """By audience; empty where nothing was measured without noise, so that power is unknown."""
    budgets: list[BudgetAudit]
    left_out: dict[str, str] = field(default_factory=dict)
    """Attacks that have no meaning here, and why."""
    has_questions: bool = False
    """Whether examples have questions with answers of their own, and not classes."""


def power(budgets: Sequence[BudgetAudit]) -> dict[str, Power]:
    """Say by audience what was found without noise: what finds nothing there proves nothing elsewhere."""
    found = {}
    for one in (one for budget in budgets for one in budget.audiences):
        measured = one.mechanism or one.canaries or one.attacks or one.secrets
        if math.isfinite(float(one.claimed["epsilon"])) or not measured:
            continue
        best = max(one.attacks, key=lambda attack: attack.auc.low or 0.0, default=None)
        found[one.audience] = Power(
            mechanism=max((result.epsilon_lower_bound for result in one.mechanism), default=None),
            end_to_end=one.end_to_end if one.canaries else None,
            attack=best.attack if best else None,
            auc=best.auc if best else None,
            secrets=one.secrets.p_value if one.secrets else None,
        )
    return found
