"""The audit of a config: for each budget and each audience the claim, what was measured, and how the attacks did."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hushprompt.audits.audit_record import CRAFTED_POWER, FORMAT, AudienceAudit, AuditRecord, BudgetAudit, power
from hushprompt.audits.canaries import CanaryAudit, canary_audits
from hushprompt.audits.client_canaries import has_client_canaries
from hushprompt.audits.crafted_prompts import crafted_results, why_left_out
from hushprompt.audits.exposure import Exposure, SecretSettings, exposures
from hushprompt.audits.mechanism_audit import Bound, audit_audience, bound_of
from hushprompt.audits.metrics import AttackResult
from hushprompt.audits.shadows import OnShadow, job_path, load, load_shadows, run_shadows, secrets_path, target_path
from hushprompt.audits.suite import ATTACKS, MIN_SHADOWS, Audited, attack_all
from hushprompt.audits.world import audiences, check_attackable
from hushprompt.checks import one_of, positive
from hushprompt.config import parse as configs
from hushprompt.config.schema import RunConfig
from hushprompt.data.base import Dataset
from hushprompt.data.partitions.base import ClientShard
from hushprompt.errors import ConfigError, ResumeError
from hushprompt.federation.planning import plan_arms
from hushprompt.federation.setup import Classes, client_sizes, declared_classes, make_partition, num_trained_classes
from hushprompt.methods.base import OneRelease
from hushprompt.methods.linear_head import LinearHead
from hushprompt.models.generative import GenerativeConfig
from hushprompt.privacy.config import Audience
from hushprompt.registry import METHODS
from hushprompt.runs import identity as identities
from hushprompt.runs import records
from hushprompt.runs.arm import Arm
from hushprompt.seeding import stream
from hushprompt.words import counted

CRAFTED = "crafted_prompt"
FILE = "audit.json"
"""What an audit leaves in its folder."""


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """What is audited, and how hard."""

    client_id: int = 0
    """Whose examples are attacked."""
    epsilons: tuple[float, ...] = ()
    """Target budgets, each trained and attacked on its own; none: the config's. inf shows the audit's power."""
    attacks: tuple[str, ...] = ATTACKS
    """Attacks; all but `crafted_prompt` are made on shadow federations, and without any of those there are none."""
    audiences: tuple[str, ...] = tuple(Audience)
    """Who attacks; an audience without a claim is left out."""
    num_shadows: int = 64
    """Shadow federations of every budget."""
    num_targets: int = 10
    """Examples that `crafted_prompt` is aimed at, each in 20 runs of the client; at most all that it has."""
    num_canaries: int = 200
    """Mislabelled examples of the end-to-end audit, questions with made-up answers, or clients of as many federations
    as it takes where the unit is a client; 0 leaves it out."""
    num_gradient_canaries: int = 5000
    """Gradient canaries of the mechanism audit; 0 leaves it out."""
    num_secrets: int | None = None
    """Secrets in the client's answers, whose exposure is measured; None: 4 where the data have questions, else none."""
    num_repeats: int = 1
    """Training examples that have each secret."""
    num_digits: int = 3
    """Random digits of a secret, from 1 to 4."""

    def __post_init__(self) -> None:
        """Check the fields."""
        for attack in self.attacks:
            one_of(ATTACKS, attack=attack)
        for audience in self.audiences:
            one_of([str(one) for one in Audience], audience=audience)
        for epsilon in self.epsilons:
            positive(epsilon=epsilon)
        positive(num_targets=self.num_targets)
        if self.on_shadows and self.num_shadows < MIN_SHADOWS:
            raise ConfigError(f"--num-shadows must be at least {MIN_SHADOWS}, got {self.num_shadows}. 64 are usual.")
        for name in ("num_canaries", "num_gradient_canaries"):
            if 0 < getattr(self, name) < 10 or getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or at least 10, got {getattr(self, name)}.")
        self._secrets(self.num_secrets or 1)

    def _secrets(self, num_secrets: int) -> SecretSettings:
        """Return what is hidden."""
        return SecretSettings(num_secrets=num_secrets, num_repeats=self.num_repeats, num_digits=self.num_digits)

    def secrets_in(self, dataset: Dataset) -> SecretSettings | None:
        """Return what is hidden in answers; None where nothing is.

        Raises:
            ConfigError: secrets are asked for, and there are no answers.
        """
        if self.num_secrets and not dataset.is_open:
            raise ConfigError(f"A secret is hidden in an answer, and {dataset.name} has classes. Leave secrets out.")
        wanted = (4 if dataset.is_open else 0) if self.num_secrets is None else self.num_secrets
        return self._secrets(wanted) if wanted else None

    @property
    def on_shadows(self) -> tuple[str, ...]:
        """Attacks that are made on shadow federations."""
        return tuple(attack for attack in self.attacks if attack != CRAFTED)


def audit(
    what: RunConfig | Path | str,
    *,
    out: Path | str | None = None,
    overrides: Sequence[str] = (),
    workers: int = 0,
    on_progress: OnShadow = lambda done, total: None,
    **settings: Any,
) -> AuditRecord:
    """Attack what a run publishes, measure a lower bound on epsilon, and set it beside the claim.

    Called again with the same folder, it goes on where it was stopped.

    Args:
        what: a config, a run folder, a config file, or a preset's name.
        out: folder of the audit, which takes `audit.json`; None: `audit` in the run folder, or audit/NAME.
        overrides: settings of the form "section.key=value"; not for a config that is given as such.
        workers: processes, each with one thread; 0 takes one a core.
        on_progress: called with how many federations are trained, and how many are wanted.
        settings: fields of `AuditSettings`, such as epsilons=(2.0, math.inf) or num_shadows=64.

    Raises:
        ConfigError: a setting is impossible, or the method publishes no prompt that is trained.
        ResumeError: the folder holds another audit, or another process is at work in it.
    """
    chosen = AuditSettings(**settings)
    config, folder = locate(what, overrides)
    folder = folder if out is None else Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    if not overrides and isinstance(what, (Path, str)):
        check_content(Path(what), config)
    with records.locked(folder):
        record = measure(config, chosen, folder, on_progress, workers or config.runtime.num_threads)
    records.write_json(folder / FILE, record)
    return record


def check_content(folder: Path, config: RunConfig) -> None:
    """Refuse to attack a run on other data, or another model, than it was trained on.

    Raises:
        ResumeError: something differs; the message says what.
    """
    recorded = identities.read(folder)
    if recorded is None:
        return
    dataset = config.data.load()
    partition = make_partition(config, dataset)
    clients = zip(partition.client_names, client_sizes(partition), strict=True)
    now = identities.identity_of(config, dataset, clients)
    now = dataclasses.replace(now, backbone=config.backbone.load().fingerprint)
    if found := recorded.differences(now):
        raise ResumeError(
            f"{folder} was trained on something else, so an attack on what lies there now says nothing about it: "
            f"{'; '.join(found)}. Put it back, or audit the config itself: hushprompt audit {folder / 'config.toml'}."
        )


def locate(what: RunConfig | Path | str, overrides: Sequence[str]) -> tuple[RunConfig, Path]:
    """Return the config, and where its audit goes if nobody says."""
    if isinstance(what, RunConfig):
        return what, Path("audit") / METHODS.name_of(what.method)
    path = Path(what)
    is_run = (path / "config.toml").exists()
    config = configs.load_stored(path, overrides) if is_run else configs.load(configs.locate(path), overrides)
    return config, path / "audit" if is_run else Path("audit") / path.stem


def measure(
    config: RunConfig, settings: AuditSettings, folder: Path, on_shadow: OnShadow, num_workers: int = 0
) -> AuditRecord:
    """Audit a config: mechanism, one run with canaries, shadow federations and the attacks on them.

    Goes on where it was stopped: a federation whose file is in `folder` is not trained again. Where the unit is a
    client, clients are the canaries of the mechanism and of federations, and nothing is asked about examples. Where it
    is a group, groups are the canaries, and whole groups are in or out of a shadow federation.

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
    secrets = settings.secrets_in(dataset)
    partition = make_partition(config, dataset)
    declared = declared_classes(config, dataset.class_names[: num_trained_classes(config, dataset)])
    arms = budget_arms(config, settings.epsilons, client_sizes(partition), declared)
    if not audiences(arms[0]):
        raise ConfigError("The method trains nothing on private data, so there is nothing to audit.")
    check_attackable(arms[0].method)
    if arms[0].start is not None:
        raise ConfigError(
            "The attacks train from a public start, and the claim of this config counts the release that it starts "
            'from. Audit it with method.start = "public", and method.name = "class_statistics" for the release.'
        )
    clients = partition.clients
    if not 0 <= settings.client_id < len(clients):
        raise ConfigError(f"--client must lie in 0 to {len(clients) - 1}, got {settings.client_id}.")
    client = clients[settings.client_id]
    if secrets is not None:
        secrets.check_fits(len(client.indices["train"]), settings.client_id)
    left_out = _left_out(config, arms[0], settings, is_open=dataset.is_open)
    settings = dataclasses.replace(settings, attacks=tuple(one for one in settings.attacks if one not in left_out))
    is_crafted = CRAFTED in settings.attacks and Audience.SERVER in settings.audiences
    work = AuditWork(config, arms, settings, folder, on_shadow, num_workers, is_crafted, secrets)
    if config.privacy.privacy_unit == "client":
        num_candidates, num_shadows = len(clients), 0
        if has_client_canaries(config, arms[0]):
            num_shadows = math.ceil(settings.num_canaries / num_candidates)
        found = _with_clients(work, num_shadows)
    else:
        num_candidates, num_shadows = client.size, settings.num_shadows if settings.on_shadows else 0
        found = _with_examples(work, num_shadows, dataset, client)
    budgets = [_budget(work, arm, trained) for arm, trained in zip(arms, found, strict=True)]
    return AuditRecord(
        format=FORMAT,
        config_identity=config.identity(),
        method=arms[0].method_name,
        privacy_unit=config.privacy.privacy_unit,
        client_id=settings.client_id,
        num_candidates=num_candidates,
        num_shadows=num_shadows,
        seed=config.seed,
        confidence=0.95,
        power=power(budgets),
        budgets=budgets,
        left_out=left_out,
        has_questions=dataset.is_open,
    )


def _left_out(config: RunConfig, arm: Arm, settings: AuditSettings, *, is_open: bool) -> dict[str, str]:
    """Return which attacks have no meaning for a config, and why.

    Raises:
        ConfigError: such an attack was asked for by name.
    """
    is_generative = isinstance(config.backbone, GenerativeConfig)
    reasons = {
        CRAFTED: why_left_out(config, arm, settings.client_id),
        "pipra": "PIPRA compares text features with image features, and a generative model has none."
        if is_generative
        else None,
        "shadow_mlp": "The shadow MLP learns from the scores of all classes, and questions have none."
        if is_open
        else None,
    }
    found = {attack: why for attack, why in reasons.items() if why and attack in settings.attacks}
    for attack, why in found.items():
        if settings.attacks != ATTACKS:
            raise ConfigError(f"{why} Leave {attack} out of --attack.")
    return found


def budget_arms(
    config: RunConfig, epsilons: Sequence[float], sizes: list[int], classes: Classes | None = None
) -> list[Arm]:
    """Return the config's method once for each budget, or once as the config has it."""
    arms = []
    for epsilon in dict.fromkeys(epsilons) or [None]:
        changed = config
        if epsilon is not None:
            privacy = dataclasses.replace(
                config.privacy, epsilon=epsilon, noise_multiplier_local=None, noise_multiplier_global=None
            )
            changed = dataclasses.replace(config, privacy=privacy)
        arms += plan_arms(changed, sizes, classes)
    return arms


@dataclass(frozen=True)
class AuditWork:
    """What trainings of an audit need; see `audit`."""

    config: RunConfig
    arms: Sequence[Arm]
    settings: AuditSettings
    folder: Path
    on_shadow: OnShadow
    num_workers: int
    is_crafted: bool
    """Whether prompts are crafted."""
    secrets: SecretSettings | None = None
    """What is hidden in answers of one more run of each arm."""

    def train(self, num_shadows: int, num_canaries: int, num_targets: int = 0) -> None:
        """Train what is missing."""
        client, folder, workers = self.settings.client_id, self.folder, self.num_workers
        numbers = (num_shadows, num_canaries, folder, self.on_shadow, workers, num_targets)
        run_shadows(self.config, self.arms, client, *numbers, secrets=self.secrets)

    def exposures(self, arm: Arm) -> dict[Audience, Exposure]:
        """Return how much each audience's prompt tells of the secrets; empty where none are hidden."""
        secrets = self.secrets
        return {} if secrets is None else exposures(load(secrets_path(self.folder, arm, secrets)), arm, secrets)

    def paths(self, arm: Arm, num_shadows: int) -> list[Path]:
        """Return the files of an arm's shadow federations."""
        return [job_path(self.folder, arm, index, 0) for index in range(num_shadows)]


@dataclass(frozen=True, kw_only=True)
class TrainedArm:
    """What the trainings of one arm showed, by audience."""

    canaries: Mapping[Audience, list[CanaryAudit]]
    attacks: Mapping[Audience, list[AttackResult]]
    clear_sums: AttackResult | None = None


def _with_examples(work: AuditWork, num_shadows: int, dataset: Dataset, client: ClientShard) -> list[TrainedArm]:
    """Attack one client's examples or groups, in federations and by crafted prompts, and guess about mislabelled ones.

    Args:
        work: what is trained.
        num_shadows: federations of each arm.
        dataset: what the client has examples of.
        client: who is attacked.
    """
    settings, seed = work.settings, work.config.seed
    if settings.num_canaries > client.size:
        unit = "example" if client.groups is None else "group"
        raise ConfigError(
            f"--canaries must be at most the {counted(client.size, unit)} of client {settings.client_id}, got "
            f"{settings.num_canaries}."
        )
    labels, population = (
        dataset.splits[split].labels[client.indices[split]] for split in ("train", work.config.evaluation.split)
    )
    if dataset.is_open:  # of two columns, the first is the true answer's
        labels, population = np.zeros_like(labels), np.zeros_like(population)
    num_targets = min(settings.num_targets, len(labels)) if work.is_crafted else 0
    work.train(num_shadows, settings.num_canaries, num_targets)
    found = []
    for arm in work.arms:
        attacks: dict[Audience, list[AttackResult]] = {}
        canaries, clear = {}, None
        if num_shadows:
            shadows = load_shadows(work.paths(arm, num_shadows))
            claim = Audited(arm.plan.config.delta, bound_of(arm.plan)) if isinstance(arm.method, LinearHead) else None
            attacks = attack_all(shadows, labels, population, settings.on_shadows, seed, claim, client.groups)
        if settings.num_canaries:
            kept = load(job_path(work.folder, arm, None, settings.num_canaries))
            bound: Bound = "f_dp_gaussian" if isinstance(arm.method, OneRelease) else "one_run"
            canaries = {who: canary_audits(kept, who, arm.plan.config.delta, bound) for who in audiences(arm)}
        if num_targets:
            files = [load(target_path(work.folder, arm, target)) for target in range(num_targets)]
            clear, seen = crafted_results(files, arm, seed)
            if seen is not None:
                attacks[Audience.SERVER] = [*attacks.get(Audience.SERVER, []), seen]
        found.append(TrainedArm(canaries=canaries, attacks=attacks, clear_sums=clear))
    return found


def _with_clients(work: AuditWork, num_shadows: int) -> list[TrainedArm]:
    """Guess which clients were there, in so many federations of each arm; their releases are Gaussian, not sampled."""
    work.train(num_shadows, 0)
    found = []
    for arm in work.arms:
        canaries = {}
        if num_shadows:
            files = [load(path) for path in work.paths(arm, num_shadows)]
            kept = {name: torch.cat([file[name] for file in files]) for name in files[0]}
            delta = arm.plan.config.delta
            canaries = {who: canary_audits(kept, who, delta, "f_dp_gaussian") for who in audiences(arm)}
        found.append(TrainedArm(canaries=canaries, attacks={}))
    return found


def _budget(work: AuditWork, arm: Arm, trained: TrainedArm) -> BudgetAudit:
    """Put together what was measured of one budget."""
    settings, guarantees, told = work.settings, arm.plan.guarantees(), work.exposures(arm)
    found = []
    for audience in (one for one in audiences(arm) if one in settings.audiences):
        guarantee = guarantees[audience]
        mechanism = []
        if settings.num_gradient_canaries:
            rng = stream(work.config.seed, "mechanism audit", arm.label, str(audience))
            mechanism = audit_audience(arm.plan, audience, num_canaries=settings.num_gradient_canaries, rng=rng)
        found.append(
            AudienceAudit(
                audience=str(audience),
                claimed={**guarantee.to_json(), "statement": guarantee.statement()},
                mechanism=mechanism,
                canaries=trained.canaries.get(audience, []),
                attacks=trained.attacks.get(audience, []),
                secrets=told.get(audience),
            )
        )
    clear = trained.clear_sums
    return BudgetAudit(
        arm=arm.label,
        epsilon=arm.plan.config.epsilon,
        audiences=found,
        clear_sums=clear,
        crafted_has_power=None if clear is None else (clear.auc.value or 0.0) >= CRAFTED_POWER,
    )
