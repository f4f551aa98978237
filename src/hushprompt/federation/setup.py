"""From a config to what the loop needs: the federation (model, data, clients) and the arms of the table."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from hushprompt import seeding
from hushprompt.config.schema import Reference, RunConfig
from hushprompt.data import doctor
from hushprompt.data.base import Dataset, HeldByClients
from hushprompt.data.copies import in_training, refuse_across_clients
from hushprompt.data.partitions.base import DeclaresClasses, Partition
from hushprompt.errors import ConfigError, PrivacyError, UnfitError
from hushprompt.evaluation.base_to_new import base_images, num_base_classes
from hushprompt.evaluation.splits import ClientSplit, client_splits
from hushprompt.features.cache import Progress, check_fit, image_features
from hushprompt.features.store import StoredFeatures
from hushprompt.methods.base import (
    ClipsBatches,
    Method,
    NamesMechanism,
    OneRelease,
    PublicTask,
    StartsFromRelease,
    check_needs,
)
from hushprompt.models.base import FeatureKind, Model
from hushprompt.models.placing import place, step_memory_mb
from hushprompt.privacy import statements
from hushprompt.privacy.budget import start_multiplier
from hushprompt.privacy.config import Audience, Channel, PrivacyConfig
from hushprompt.privacy.copies import epsilon_of_copies
from hushprompt.privacy.metrics import MetricsPlan, make_metrics_plan
from hushprompt.privacy.plan import PrivacyPlan, check_parts, make_plan
from hushprompt.privacy.sampling import EveryExample
from hushprompt.privacy.schedule import Cohorts, draw_cohorts
from hushprompt.prompts.optimizer import with_schedule_steps
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.registry import METHODS
from hushprompt.runs.arm import Arm
from hushprompt.words import counted

LOG = logging.getLogger(__name__)
Classes = tuple[tuple[int, ...] | None, ...]
"""Of each client: the classes that it is publicly declared to have, or None."""
Load = Callable[[Any], Any]
"""Loads the thing that a `data` or `backbone` section describes. Who makes many runs may keep what it loaded."""


@dataclass(frozen=True)
class NewImages:
    """Classes that nobody trains on, and their images in the evaluation split."""

    model: PromptModel
    """Knows the new class names alone."""
    features: dict[FeatureKind, Tensor]
    """[m, d] or [m, patches, d] of each kind that the arms need."""
    labels: Int[Tensor, " m"]
    """Counted from the first new class."""


@dataclass(frozen=True)
class Federation:
    """Model, data and clients, ready to train."""

    model: PromptModel
    train_features: dict[FeatureKind, StoredFeatures]
    """Of the kinds that the arms need. They stay on the disk; a step reads the rows of its batch."""
    train_labels: Int[Tensor, " n"]
    eval_features: dict[FeatureKind, Tensor]
    """[m, d], or [m, patches, d]: windows onto the files where these are float32."""
    eval_labels: Int[Tensor, " m"]
    partition: Partition
    splits: tuple[ClientSplit, ...]
    checksums: Mapping[str, str] = field(default_factory=dict)
    """Of the features of each split and kind, by the cache."""
    new: NewImages | None = None
    """Where base-to-new evaluation is on; the model above then knows the base classes alone."""
    declared: Classes | None = None
    """Classes of each client that are public; the partition's seed decides them, whatever seed a training has."""


def make_partition(config: RunConfig, dataset: Dataset) -> Partition:
    """Partition a data set, or what it has of base classes, among the clients of a config.

    Raises:
        ConfigError: the partition is impossible, or the data set lacks the split that is to be scored.
        DataError: two clients would hold the same example, and `data.duplicates` does not allow it.
    """
    if config.evaluation.split not in dataset.splits:
        raise ConfigError(
            f"evaluation.split is {config.evaluation.split!r}, but {dataset.name} has only: "
            f"{', '.join(sorted(dataset.splits))}."
        )
    partition = _partition(config, dataset)
    refuse_across_clients(dataset, partition)
    return partition


def _partition(config: RunConfig, dataset: Dataset) -> Partition:
    """Partition a data set, or what it has of base classes, by the config's rule."""
    rng = seeding.stream(config.seed, "partition")
    num_base = num_trained_classes(config, dataset)
    if num_base == len(dataset.class_names):
        whole: Partition = config.partition.partition(dataset, rng)
        return whole
    base = base_images(dataset, num_base)
    return base.in_whole(config.partition.partition(base.dataset, rng))


def client_sizes(partition: Partition) -> list[int]:
    """Return the public number of training examples of every client."""
    return [len(client.indices["train"]) for client in partition.clients]


def load_fresh(section: Any) -> Any:
    """Load a data set or a backbone anew."""
    return section.load()


def loads_once() -> Load:
    """Return what loads each section of one config once."""
    loaded: dict[int, tuple[Any, Any]] = {}

    def load(section: Any) -> Any:
        if id(section) not in loaded:
            loaded[id(section)] = section, section.load()
        return loaded[id(section)][1]

    return load


def load_model(config: RunConfig, dataset: Dataset, arms: Sequence[Arm], load: Load = load_fresh) -> PromptModel:
    """Load the backbone, and see that every arm's method fits it before anything is encoded or trained.

    Raises:
        ConfigError: a method's settings are impossible for this model or these class names, or it needs features that
            the backbone does not have.
        DataError: the backbone's weights give no finite score.
    """
    num_trained = num_trained_classes(config, dataset)
    backbone = load_backbone(config, dataset, load)
    device = place(backbone, config.runtime.device)
    names = dataset.class_names[:num_trained]
    model = PromptModel(backbone, names, device=device, memory_mb=step_memory_mb(config.runtime.memory_mb, device))
    for arm in (stage for whole in arms for stage in whole.stages):
        check_needs(arm.method, model.backbone)
        if num_trained < len(dataset.class_names) and getattr(arm.method, "is_class_specific", False):
            raise ConfigError(
                f"{arm.label}: method.is_class_specific = true has no context for classes that nobody trains on. Use "
                'evaluation.base_classes = "none", or method.is_class_specific = false.'
            )
        arm.method.init(model, seeding.stream(config.seed, "init"))
    model.check_scores()
    return model


def load_backbone(config: RunConfig, dataset: Dataset, load: Load = load_fresh) -> Model:
    """Load the backbone, which must take what the data set holds."""
    backbone: Model = load(config.backbone)
    check_fit(backbone, dataset, config.features)
    if dataset.encoder and not backbone.encoder:
        backbone = copy.copy(backbone)  # it may be somebody else's too
        backbone.encoder = dataset.encoder
    return backbone


def with_fitting_references(config: RunConfig, load: Load | None = None) -> RunConfig:
    """Return a config without references that cannot run, of which a line tells why, or that are the run's own arm.

    Args:
        config: before its run begins; the run folder gets what this returns, so whoever reads it has the same arms.
        load: loads data set and backbone, to see what they lack; None: the settings alone are looked at.
    """
    backbone = load_backbone(config, load(config.data), load) if load and config.references else None
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


def assemble(
    config: RunConfig,
    model: PromptModel,
    dataset: Dataset,
    partition: Partition,
    on_progress: Progress,
    kinds: Set[FeatureKind] = frozenset({"pooled"}),
) -> Federation:
    """Encode the images once, or take their features from the cache; only the kinds that are asked for."""

    def load(split: str) -> dict[FeatureKind, StoredFeatures]:
        where = config.runtime.cache_path
        return {
            kind: image_features(model.backbone, dataset, split, where, config.features, on_progress, kind)
            for kind in sorted(kinds)
        }

    train = load("train")
    scored = load(config.evaluation.split)
    eval_features = {kind: stored.tensor().to(model.device) for kind, stored in scored.items()}
    eval_labels = torch.from_numpy(dataset.splits[config.evaluation.split].labels)
    return Federation(
        model=model,
        train_features=train,
        train_labels=torch.from_numpy(dataset.splits["train"].labels),
        eval_features=eval_features,
        eval_labels=eval_labels,
        partition=partition,
        splits=client_splits(partition, config.evaluation.split),
        checksums={
            f"{name} ({kind})": stored.checksum
            for name, kinds in (("train", train), (config.evaluation.split, scored))
            for kind, stored in kinds.items()
        },
        new=_new_images(model, dataset, eval_features, eval_labels),
        declared=declared_classes(config, model.class_names),
    )


def num_trained_classes(config: RunConfig, dataset: Dataset) -> int:
    """Return the number of classes that clients train on, which come first."""
    total = len(dataset.class_names)
    wanted = config.evaluation.base_classes
    return total if wanted is None else num_base_classes(wanted, total)


def _new_images(
    model: PromptModel, dataset: Dataset, features: Mapping[FeatureKind, Tensor], labels: Int[Tensor, " n"]
) -> NewImages | None:
    """Return the images of the classes that the model does not know; None if it knows all.

    Raises:
        ConfigError: there is no such image.
    """
    new_names = dataset.class_names[model.num_classes :]
    if not new_names:
        return None
    is_new = labels >= model.num_classes
    if not is_new.any():
        raise ConfigError(
            "evaluation.base_classes is set, but no evaluation image shows a new class. Use another split."
        )
    new_model = PromptModel(model.backbone, new_names, device=model.device, memory_mb=model.memory_mb)
    own = {kind: values[is_new.to(values.device)] for kind, values in features.items()}
    return NewImages(new_model, own, labels[is_new] - model.num_classes)


def declared_classes(config: RunConfig, class_names: Sequence[str]) -> Classes | None:
    """Return the classes that each client is publicly known to have: by the partition's rule, or `data.client_classes`.

    No data are asked: a class of which nobody has an example stays with its client.

    Raises:
        ConfigError: both say it, or a class is none of `class_names`.
    """
    said = config.data.class_sets(class_names) if isinstance(config.data, HeldByClients) else ()
    if not isinstance(config.partition, DeclaresClasses):
        return said or None
    if said:
        raise ConfigError("The partition's rule declares each client's classes already. Leave data.client_classes out.")
    return config.partition.class_sets(len(class_names), seeding.stream(config.seed, "partition"))


def plan_arms(config: RunConfig, sizes: list[int], classes: Classes | None = None, num_late: int = 0) -> list[Arm]:
    """Return the arms of a run, references first; calibrates all noise and refuses what the theorem does not cover.

    Args:
        config: what to run.
        sizes: public number of training examples of every client.
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
        )
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
    """Return what is public of a federation."""
    return PublicTask(
        client_sizes=sizes,
        client_classes=(None,) * len(sizes) if classes is None else classes,
        noise_multiplier=plan.release_plan.noise_multipliers[Channel.GLOBAL],
        clip_norm=plan.release_plan.clip_norms[Channel.GLOBAL],
        noise_at=plan.config.noise_at,
        num_late=num_late,
    )


def tell_findings(
    config: RunConfig, dataset: Dataset, partition: Partition, arms: Sequence[Arm], classes: Classes | None = None
) -> None:
    """Say in one line what a user should know of the data, and what the guarantee is worth to images with copies.

    Args:
        config: of the run.
        dataset: its data.
        partition: who holds what.
        arms: of the run.
        classes: that each client of the partition is declared to have, see `declared_classes`.
    """
    subject = doctor.Subject(
        dataset=dataset,
        partition=partition,
        num_shots=config.partition.num_shots,
        classes=classes if any(isinstance(stage.method, OneRelease) for stage in arms[-1].stages) else None,
    )
    doctor.warn(subject, copies_note(arms[-1].plan, in_training(dataset, dataset.copies, partition)))


def copies_note(plan: PrivacyPlan, repeated: Mapping[int, Mapping[int, int]]) -> str:
    """Say what a plan guarantees to the image with the most copies in one training set; "" where there is none.

    Args:
        plan: of what is trained.
        repeated: by client, how many images stand so many times in its training set.
    """
    audience = plan.config.audience
    claimed = plan.guarantees()[audience] if repeated and plan.channels else None
    if claimed is None or math.isinf(claimed.epsilon):
        return ""
    client_id, num_copies = max(((who, max(counts)) for who, counts in repeated.items()), key=lambda pair: pair[1])
    epsilon = epsilon_of_copies(plan, audience, num_copies, client_id)
    return statements.copies_statement(claimed, epsilon, num_copies, plan.release_plan.noise_source)


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
        client_sizes=[len(client.indices[evaluation.split]) for client in partition.clients],
        noise_source=arms[-1].plan.release_plan.noise_source,
    )


def _check_local_steps(config: RunConfig, plan: PrivacyPlan) -> None:
    """Raise PrivacyError where a client would step its copy with a sum that the server was to make private."""
    is_noisy = plan.release_plan.noise_multipliers.get(Channel.GLOBAL, 0.0) > 0
    if config.training.local_steps > 1 and config.privacy.noise_at == "server" and is_noisy:
        raise PrivacyError(
            f"training.local_steps = {config.training.local_steps} lets clients step the shared prompt on their own, "
            'before the server could add its noise. Set privacy.noise_at = "client", so that every client makes each '
            "of its gradients private itself, or training.local_steps = 1."
        )


def _label(method_name: str, plan: PrivacyPlan) -> str:
    """Name an arm by its method and budget."""
    if not plan.channels:
        return method_name
    if not any(plan.release_plan.noise_multipliers.values()):
        return f"{method_name}, no noise"
    if plan.config.epsilon is None:
        return f"{method_name}, given noise"
    if plan.release_plan.batch_clipping is not None and plan.release_plan.batch_clipping.calibration == "paper":
        return f"{method_name}, nominal epsilon {plan.config.epsilon:g}"
    return f"{method_name}, epsilon {plan.config.epsilon:g}"
