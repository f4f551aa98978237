"""The audit of a config: for each budget and each audience the claim, what was measured, and how the attacks did."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hushprompt.attacks.canaries import CanaryAudit, canary_audits
from hushprompt.attacks.metrics import AttackResult, Interval
from hushprompt.attacks.shadows import OnShadow, job_path, load, load_shadows, run_shadows
from hushprompt.attacks.suite import ATTACKS, MIN_SHADOWS, attack_all
from hushprompt.attacks.world import audiences, context_method
from hushprompt.checks import one_of
from hushprompt.config import RunConfig
from hushprompt.errors import ConfigError
from hushprompt.federation.setup import Row, client_sizes, cut, plan_rows
from hushprompt.privacy.auditing import AuditResult, audit_audience
from hushprompt.privacy.config import Audience
from hushprompt.seeding import stream

FORMAT = "hushprompt audit 2"


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """What is audited, and how hard."""

    client_id: int = 0
    """Whose examples are attacked."""
    epsilons: tuple[float, ...] = ()
    """Target budgets, each trained and attacked on its own; none: the config's. inf shows the audit's power."""
    attacks: tuple[str, ...] = ATTACKS
    """Attacks on shadow federations; none leaves the shadow federations out."""
    audiences: tuple[Audience, ...] = tuple(Audience)
    """Who attacks; an audience without a claim is left out."""
    num_shadows: int = 64
    """Shadow federations of every budget."""
    num_canaries: int = 200
    """Mislabelled examples of the end-to-end audit; 0 leaves it out."""
    num_gradient_canaries: int = 5000
    """Gradient canaries of the mechanism audit; 0 leaves it out."""

    def __post_init__(self) -> None:
        """Check the fields."""
        for attack in self.attacks:
            one_of(ATTACKS, attack=attack)
        if self.attacks and self.num_shadows < MIN_SHADOWS:
            raise ConfigError(f"--num-shadows must be at least {MIN_SHADOWS}, got {self.num_shadows}. 64 are usual.")
        for name in ("num_canaries", "num_gradient_canaries"):
            if 0 < getattr(self, name) < 10 or getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or at least 10, got {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True)
class AudienceAudit:
    """One audience of one budget."""

    audience: str
    claimed: dict[str, Any]
    """The guarantee as in `privacy.json`, with its statement."""
    mechanism: list[AuditResult]
    """Lower bounds from gradient canaries through sampling, clipping, noise and division."""
    canaries: list[CanaryAudit]
    """Lower bounds from mislabelled images through the whole training."""
    attacks: list[AttackResult]
    """Membership attacks; they bound nothing by themselves."""

    @property
    def end_to_end(self) -> float:
        """The largest bound from canaries in a training."""
        return max((one.result.epsilon_lower_bound for one in self.canaries), default=0.0)

    @property
    def lower_bound(self) -> float:
        """The largest bound that was measured; each holds with 95 % on its own."""
        return max([self.end_to_end, *(one.epsilon_lower_bound for one in self.mechanism)])

    @property
    def is_contradicted(self) -> bool:
        """True if more was measured than is claimed: then the code is wrong, or one chance in twenty has happened."""
        return self.lower_bound > float(self.claimed["epsilon"])


@dataclass(frozen=True, kw_only=True)
class BudgetAudit:
    """One budget."""

    row: str
    epsilon: float | None
    """Target epsilon of the budget's audience; inf without noise, None where the noise was given."""
    audiences: list[AudienceAudit]


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

    @property
    def has_power(self) -> dict[str, bool | None]:
        """Whether each kind found something; None where it was left out."""
        return {
            "mechanism": None if self.mechanism is None else self.mechanism > 0,
            "end_to_end": None if self.end_to_end is None else self.end_to_end > 0,
            "attack": None if self.auc is None else (self.auc.low or 0.0) > 0.5,
        }


@dataclass(frozen=True, kw_only=True)
class AuditRecord:
    """`audit.json`."""

    format: str
    config_identity: str
    method: str
    client_id: int
    num_candidates: int
    num_shadows: int
    seed: int
    confidence: float
    power: dict[str, Power]
    """By audience; empty where nothing was measured without noise, so that power is unknown."""
    budgets: list[BudgetAudit]


def audit(
    config: RunConfig, settings: AuditSettings, folder: Path, on_shadow: OnShadow, num_workers: int = 0
) -> AuditRecord:
    """Audit a config: mechanism, one run with canaries, shadow federations and the attacks on them.

    Goes on where it was stopped: a federation whose file is in `folder` is not trained again. Where the unit is a
    client, the mechanism alone is audited, with clients as canaries.

    Args:
        config: what is attacked; its references are left out.
        settings: how.
        folder: takes the federations' files.
        on_shadow: progress.
        num_workers: processes; 0 takes one a core.

    Raises:
        ConfigError: a setting is impossible, or the method publishes no prompt that is trained.
        ResumeError: `folder` holds another audit.
    """
    config = dataclasses.replace(config, references=())
    dataset = config.data.load()
    partition = cut(config, dataset)
    rows = budget_rows(config, settings.epsilons, client_sizes(partition))
    if not audiences(rows[0]):
        raise ConfigError("The method trains nothing on private data, so there is nothing to audit.")
    context_method(rows[0].method)
    if config.privacy.privacy_unit != "example":
        settings = dataclasses.replace(settings, attacks=(), num_canaries=0)
    clients = partition.clients
    if not 0 <= settings.client_id < len(clients):
        raise ConfigError(f"--client must lie in 0 to {len(clients) - 1}, got {settings.client_id}.")
    indices = clients[settings.client_id].indices["train"]
    if settings.num_canaries > len(indices):
        raise ConfigError(
            f"--canaries must be at most the {len(indices)} examples of client {settings.client_id}, got "
            f"{settings.num_canaries}."
        )
    num_shadows = settings.num_shadows if settings.attacks else 0
    run_shadows(config, rows, settings.client_id, num_shadows, settings.num_canaries, folder, on_shadow, num_workers)
    labels = dataset.splits["train"].labels[indices]
    population = dataset.splits[config.evaluation.split].labels[
        clients[settings.client_id].indices[config.evaluation.split]
    ]
    budgets = []
    for row in rows:
        shadows = None
        if num_shadows:
            shadows = load_shadows([job_path(folder, row, k, settings.num_canaries) for k in range(num_shadows)])
        attacked = attack_all(shadows, labels, population, settings.attacks, config.seed) if shadows else {}
        budgets.append(_budget(row, settings, folder, attacked, config.seed))
    return AuditRecord(
        format=FORMAT,
        config_identity=config.identity(),
        method=rows[0].method_name,
        client_id=settings.client_id,
        num_candidates=len(indices),
        num_shadows=num_shadows,
        seed=config.seed,
        confidence=0.95,
        power=power(budgets),
        budgets=budgets,
    )


def budget_rows(config: RunConfig, epsilons: Sequence[float], sizes: list[int]) -> list[Row]:
    """Give the config's method once for each budget, or once as the config has it."""
    rows = []
    for epsilon in dict.fromkeys(epsilons) or [None]:
        changed = config
        if epsilon is not None:
            privacy = dataclasses.replace(
                config.privacy, epsilon=epsilon, noise_multiplier_local=None, noise_multiplier_global=None
            )
            changed = dataclasses.replace(config, privacy=privacy)
        rows += plan_rows(changed, sizes)
    return rows


def power(budgets: Sequence[BudgetAudit]) -> dict[str, Power]:
    """Say by audience what was found without noise: what finds nothing there proves nothing elsewhere."""
    found = {}
    for one in (one for budget in budgets for one in budget.audiences):
        if math.isfinite(float(one.claimed["epsilon"])) or not (one.mechanism or one.canaries or one.attacks):
            continue
        best = max(one.attacks, key=lambda attack: attack.auc.low or 0.0, default=None)
        found[one.audience] = Power(
            mechanism=max((result.epsilon_lower_bound for result in one.mechanism), default=None),
            end_to_end=one.end_to_end if one.canaries else None,
            attack=best.attack if best else None,
            auc=best.auc if best else None,
        )
    return found


def _budget(
    row: Row, settings: AuditSettings, folder: Path, attacked: dict[Audience, list[AttackResult]], seed: int
) -> BudgetAudit:
    """Put together what was measured of one budget."""
    guarantees = row.plan.guarantees()
    kept = load(job_path(folder, row, None, settings.num_canaries)) if settings.num_canaries else None
    found = []
    for audience in (one for one in audiences(row) if one in settings.audiences):
        guarantee = guarantees[audience]
        mechanism = []
        if settings.num_gradient_canaries:
            rng = stream(seed, "mechanism audit", row.label, str(audience))
            mechanism = audit_audience(row.plan, audience, num_canaries=settings.num_gradient_canaries, rng=rng)
        found.append(
            AudienceAudit(
                audience=str(audience),
                claimed={**guarantee.to_json(), "statement": guarantee.statement()},
                mechanism=mechanism,
                canaries=canary_audits(kept, audience, row.plan.config.delta) if kept else [],
                attacks=attacked.get(audience, []),
            )
        )
    return BudgetAudit(row=row.label, epsilon=row.plan.config.epsilon, audiences=found)
