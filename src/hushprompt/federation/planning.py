"""From a config and public sizes to the arms of the table: whose noise is calibrated, and what is refused."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hushprompt import seeding
from hushprompt.config.schema import Reference, RunConfig
from hushprompt.data.partitions.base import Partition
from hushprompt.errors import ConfigError, PrivacyError, UnfitError
from hushprompt.federation.setup import Classes, Load, load_backbone, load_data
from hushprompt.methods.base import (
    ClipsBatches,
    Method,
    NamesMechanism,
    OneRelease,
    PublicTask,
    StartsFromRelease,
    check_needs,
)
from hushprompt.models.base import Model
from hushprompt.privacy.budget import start_multiplier
from hushprompt.privacy.config import Audience, Channel, PrivacyConfig
from hushprompt.privacy.metrics import MetricsPlan, make_metrics_plan
from hushprompt.privacy.plan import PrivacyPlan, check_parts, make_plan
from hushprompt.privacy.sampling import EveryExample
from hushprompt.privacy.schedule import Cohorts, draw_cohorts
from hushprompt.privacy.shares import MOST_CLIENTS
from hushprompt.prompts.optimizer import with_schedule_steps
from hushprompt.registry import METHODS
from hushprompt.runs.arm import Arm
from hushprompt.words import counted

LOG = logging.getLogger(__name__)


def with_fitting_references(config: RunConfig, load: Load | None = None) -> RunConfig:
    """Return a config without references that cannot run, of which a line tells why, or that are the run's own arm.

    Args:
        config: before its run begins; the run folder gets what this returns, so whoever reads it has the same arms.
        load: loads data set and backbone, to see what they lack; None: the settings alone are looked at.
    """
    backbone = load_backbone(config, load_data(config, load), load) if load and config.references else None
    kept: list[Reference] = []
    for reference in config.references:
        try:
            _check_fits(config, reference.method, backbone)
        except UnfitError as error:
            LOG.warning("The table has no row %s, which was to compare with: %s", reference.method.title, error)
        else:
            kept += [reference] if reference != Reference(method=config.method) else []
    return dataclasses.replace(config, references=tuple(kept))


def _check_fits(config: RunConfig, method: Method, backbone: Model | None) -> None:
    """Raise UnfitError if a method cannot have the run's settings or backbone."""
    release = method.first_release() if isinstance(method, StartsFromRelease) else None
    stages: list[Any] = [method] if release is None else [release, method]
    for each in stages:
        if isinstance(each, OneRelease):
            _check_one_release(config, each)
        if backbone is not None:
            check_needs(each, backbone)


def plan_arms(config: RunConfig, sizes: list[int], classes: Classes | None = None, num_late: int = 0) -> list[Arm]:
    """Return the arms of a run, references first; calibrates all noise and refuses what the theorem does not cover.

    Args:
        config: what to run.
        sizes: public size of every client, see `client_sizes`.
        classes: of every client, see `declared_classes`; None: of nobody.
        num_late: the last so many clients joined after the one release and make its last part alone.

    Raises:
        ConfigError: the cohorts or the local steps are impossible.
        PrivacyError: the configuration is outside the theorem.
    """
    if config.sampling.steps_per_round % config.training.local_steps:
        raise ConfigError(
            f"training.local_steps = {config.training.local_steps} must divide sampling.steps_per_round = "
            f"{config.sampling.steps_per_round}: the batches of a round are dealt out in groups of local_steps."
        )
    if classes is not None and len(classes) != len(sizes):
        raise ConfigError(
            f"data.client_classes has {counted(len(classes), 'list')} for {counted(len(sizes), 'client')}. Give each "
            "client one; [] keeps its classes private."
        )
    # One schedule for all arms: they are compared on the same cohorts.
    cohorts = draw_cohorts(
        len(sizes), config.training.cohort_size, config.training.num_rounds, seeding.stream(config.seed, "cohorts")
    )
    everyone = _Everyone(config, tuple(sizes), classes, cohorts, num_late)
    wanted = [(entry.method, entry.epsilon) for entry in config.references] + [(config.method, None)]
    arms: list[Arm] = []
    for method, epsilon in wanted:
        privacy = config.privacy
        if epsilon is not None:
            privacy = dataclasses.replace(
                privacy,
                epsilon=epsilon,
                noise_multiplier_local=None,
                noise_multiplier_global=None,
                max_epsilon=None,
            )
        arm = everyone.arm(method, privacy, everyone.start(method, privacy))
        num_same = sum(other.label.partition(" #")[0] == arm.label for other in arms)
        arms.append(arm.labeled(f"{arm.label} #{num_same + 1}" if num_same else arm.label))
    return arms


@dataclass(frozen=True)
class _Everyone:
    """What arms are planned for."""

    config: RunConfig
    sizes: tuple[int, ...]
    classes: Classes | None
    cohorts: Cohorts
    num_late: int

    def arm(self, method: Any, privacy: PrivacyConfig, start: Arm | None = None) -> Arm:
        """Plan one arm; its rounds are calibrated beside its start."""
        config, cohorts, sampler = self.config, self.cohorts, self.config.sampling
        if not method.channels:
            cohorts = Cohorts(cohorts.members[:0], cohorts.num_clients)
        if isinstance(method, OneRelease):
            _check_one_release(config, method)
            cohorts = draw_cohorts(len(self.sizes), None, 1, seeding.stream(config.seed, "cohorts"))
            sampler = EveryExample(steps_per_round=len(method.parts))
        plan = make_plan(
            privacy,
            sampler,
            channels=method.channels,
            num_rounds=int(cohorts.most_rounds[-1]),
            client_sizes=list(self.sizes),
            batch_clipping=method.batch_clipping if isinstance(method, ClipsBatches) else None,
            beside=() if start is None else start.plan.composed(Audience.PUBLIC),
            mechanism=method.mechanism if isinstance(method, NamesMechanism) else None,
            parts=method.parts if isinstance(method, OneRelease) else (),
            cohort_size=cohorts.cohort_size,
        )
        _check_late(plan, self.num_late)
        _check_rescue(plan, len(self.sizes))
        _check_local_steps(config, plan)
        name = METHODS.name_of(method)
        method = with_schedule_steps(method, config.training.num_rounds * config.sampling.steps_per_round)
        if isinstance(method, OneRelease):
            method = method.of_task(_task(plan, self.sizes, self.classes, self.num_late))
            if self.num_late:
                shares = (1.0,) * (len(self.sizes) - self.num_late) + (method.parts[-1],) * self.num_late
                plan = dataclasses.replace(plan, client_shares=shares)
        return Arm(_label(name, plan), name, method, plan, cohorts, start)

    def start(self, method: Any, privacy: PrivacyConfig) -> Arm | None:
        """Plan the release that a method starts from, with its share of the budget; None where it makes none.

        Its own limit is that of the whole: a release that is made again, with new noise, is charged again.
        """
        release = method.first_release() if isinstance(method, StartsFromRelease) else None
        if release is None:
            return None
        if self.config.training.num_rounds == 0:
            raise ConfigError(
                'method.start = "class_statistics" leaves the rest of the budget to rounds, and there are none. Use '
                'method.name = "class_statistics" with method.form = "contexts" or "shared_context".'
            )
        z = start_multiplier(privacy, method.start_share)
        limit = privacy.epsilon if privacy.max_epsilon is None else privacy.max_epsilon
        own = dataclasses.replace(
            privacy,
            epsilon=None,
            noise_multiplier_local=z,
            noise_multiplier_global=z,
            max_epsilon=limit if limit is not None and math.isfinite(limit) else None,
        )
        return self.arm(release, own)


def _check_one_release(config: RunConfig, method: OneRelease) -> None:
    """Refuse settings that a single release of every example cannot have."""
    training = config.training
    check_parts(config.privacy, method.parts)
    if training.local_steps > 1 or training.weighting != "size":
        raise UnfitError(
            "One release of class statistics has no local steps, and weighs every example alike. Set "
            'training.local_steps = 1 and training.weighting = "size".'
        )
    if config.evaluation.base_classes is not None:
        raise UnfitError("Class statistics know nothing of new classes. Leave evaluation.base_classes out.")


def _task(plan: PrivacyPlan, sizes: tuple[int, ...], classes: Classes | None, num_late: int) -> PublicTask:
    return PublicTask(
        client_sizes=sizes,
        client_classes=(None,) * len(sizes) if classes is None else classes,
        noise_multiplier=plan.release_plan.noise_multipliers[Channel.GLOBAL],
        clip_norm=plan.release_plan.clip_norms[Channel.GLOBAL],
        noise_at="client" if plan.config.noise_at == "client" else "server",
        num_late=num_late,
        num_draws=len(sizes) / plan.terms().honest_among(len(sizes)) if plan.release_plan.has_shares else 1.0,
    )


def plan_metrics(config: RunConfig, arms: Sequence[Arm], partition: Partition) -> MetricsPlan | None:
    """Calibrate the noise of evaluation counts, over all arms together; None where accuracies are exact.

    Raises:
        PrivacyError: metrics_delta allows publishing an image outright.
    """
    evaluation = config.evaluation
    if evaluation.metrics_epsilon is None:
        return None
    return make_metrics_plan(
        epsilon=evaluation.metrics_epsilon,
        delta=evaluation.metrics_delta,
        num_releases=sum(evaluation.num_due(arm.num_rounds) for arm in arms),
        client_sizes=[client.size_of(evaluation.split) for client in partition.clients],
        noise_source=arms[-1].plan.release_plan.noise_source,
        privacy_unit=config.privacy.privacy_unit,
        group_word=config.privacy.group_word,
    )


def _check_late(plan: PrivacyPlan, num_late: int) -> None:
    """Raise PrivacyError for a client that joins after the one release, where sums are made of noise shares."""
    if num_late and plan.release_plan.has_shares:
        raise PrivacyError(
            'With privacy.noise_at = "shares" no client can join after the release: its sum would stand alone, with no '
            'other to hide it. Make a new run with all clients, or use privacy.noise_at = "client".'
        )


def _check_rescue(plan: PrivacyPlan, num_clients: int) -> None:
    """Raise PrivacyError for more clients than there are places at which secrets are shared."""
    if num_clients > MOST_CLIENTS and plan.release_plan.has_shares and plan.config.rescue:
        raise PrivacyError(
            f"privacy.rescue is for at most {MOST_CLIENTS} clients in all, got {num_clients}: each has a place at "
            "which the others' secrets are shared. Set privacy.rescue = false."
        )


def _check_local_steps(config: RunConfig, plan: PrivacyPlan) -> None:
    """Raise PrivacyError where a client would step its copy with a sum that the server was to make private."""
    is_noisy = plan.release_plan.noise_multipliers.get(Channel.GLOBAL, 0.0) > 0
    if config.training.local_steps > 1 and plan.release_plan.has_shares:
        raise PrivacyError(
            f"training.local_steps = {config.training.local_steps} needs the full noise of each client in every step, "
            'and privacy.noise_at = "shares" gives it to their sum alone. Use training.local_steps = 1, or '
            'privacy.noise_at = "client".'
        )
    if config.training.local_steps > 1 and plan.config.noise_at == "server" and is_noisy:
        raise PrivacyError(
            f"training.local_steps = {config.training.local_steps} lets clients step the shared prompt on their own, "
            'before the server could add its noise. Set privacy.noise_at = "client", so that every client makes each '
            "of its gradients private itself, or training.local_steps = 1."
        )


def _label(method_name: str, plan: PrivacyPlan) -> str:
    if not plan.channels:
        return method_name
    if not any(plan.release_plan.noise_multipliers.values()):
        return f"{method_name}, no noise"
    if plan.config.epsilon is None:
        return f"{method_name}, given noise"
    if plan.release_plan.batch_clipping is not None and plan.release_plan.batch_clipping.calibration == "paper":
        return f"{method_name}, nominal epsilon {plan.config.epsilon:g}"
    return f"{method_name}, epsilon {plan.config.epsilon:g}"
