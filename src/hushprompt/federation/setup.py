"""From a config to what the loop needs: the federation (model, data, clients) and the arms of the table."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt import seeding
from hushprompt.config.schema import RunConfig
from hushprompt.data import doctor
from hushprompt.data.base import Dataset, HeldByClients
from hushprompt.data.copies import in_training, refuse_across_clients
from hushprompt.data.groups import with_groups
from hushprompt.data.partitions.base import DeclaresClasses, Partition
from hushprompt.errors import ConfigError, DataError, HushpromptError
from hushprompt.evaluation.base_to_new import base_images, num_base_classes
from hushprompt.evaluation.splits import ClientSplit, client_splits
from hushprompt.features.cache import Progress, check_fit, image_features
from hushprompt.features.store import StoredFeatures
from hushprompt.federation.questions import (
    Quiz,
    check_answers,
    check_one_question,
    check_open,
    quiz_of,
    texts_of,
)
from hushprompt.methods.base import OneRelease, check_needs
from hushprompt.models.base import FeatureKind, Model
from hushprompt.models.placing import place, step_memory_mb
from hushprompt.privacy import statements
from hushprompt.privacy.copies import epsilon_of_copies
from hushprompt.privacy.plan import PrivacyPlan
from hushprompt.prompts.prompted import prompted
from hushprompt.prompts.prompted_model import PromptedModel
from hushprompt.prompts.texts import TextTokens
from hushprompt.runs.arm import Arm

Classes = tuple[tuple[int, ...] | None, ...]
"""Of each client: the classes that it is publicly declared to have, or None."""
Load = Callable[[Any], Any]
"""Loads the thing that a `data` or `backbone` section describes. Who makes many runs may keep what it loaded."""


@dataclass(frozen=True)
class NewImages:
    """Classes that nobody trains on, and their images in the evaluation split."""

    model: PromptedModel
    """Knows the new class names alone."""
    features: dict[FeatureKind, Tensor]
    """[m, d] or [m, patches, d] of each kind that the arms need."""
    labels: Int[Tensor, " m"]
    """Counted from the first new class."""


@dataclass(frozen=True)
class Federation:
    """Model, data and clients, ready to train."""

    model: PromptedModel
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
    train_texts: TextTokens | None = None
    """Question and answer of each training example; None in classification."""
    quiz: Quiz | None = None
    """What is asked of the evaluation split; None in classification."""
    declared: Classes | None = None
    """Classes of each client that are public; the partition's seed decides them, whatever seed a training has."""


def make_partition(config: RunConfig, dataset: Dataset) -> Partition:
    """Partition a data set, or what it has of base classes, among the clients of a config.

    Raises:
        ConfigError: the partition is impossible; the data set lacks the split that is to be scored, or names no groups
            where these are the unit.
        DataError: two clients would hold the same example, and `data.duplicates` does not allow it.
    """
    if config.evaluation.split not in dataset.splits:
        raise ConfigError(
            f"evaluation.split is {config.evaluation.split!r}, but {dataset.name} has only: "
            f"{', '.join(sorted(dataset.splits))}."
        )
    check_open(config, dataset)
    partition = _partition(config, dataset)
    refuse_across_clients(dataset, partition)
    check_duplicates(config, dataset)
    check_one_question(config, dataset, partition)
    return with_groups(partition, dataset) if config.privacy.privacy_unit == "group" else partition


def check_duplicates(config: RunConfig, dataset: Dataset) -> None:
    """Raise ConfigError where copies are declared to be a group, and groups are not what is protected."""
    if dataset.duplicates == "group" and config.privacy.privacy_unit != "group":
        raise ConfigError(
            'data.duplicates = "group" puts copies into one group, and groups are not what privacy.privacy_unit = '
            f'"{config.privacy.privacy_unit}" protects. Set privacy.privacy_unit = "group", or data.duplicates = '
            '"allow".'
        )


def _partition(config: RunConfig, dataset: Dataset) -> Partition:
    """Partition a data set, or what it has of base classes, by the config's rule."""
    rng = seeding.stream(config.seed, "partition")
    keeps_groups = config.privacy.privacy_unit == "group"
    num_base = num_trained_classes(config, dataset)
    if num_base == len(dataset.class_names):
        whole: Partition = config.partition.partition(dataset, rng, keeps_groups=keeps_groups)
        return whole
    base = base_images(dataset, num_base)
    return base.in_whole(config.partition.partition(base.dataset, rng, keeps_groups=keeps_groups))


def client_sizes(partition: Partition) -> list[int]:
    """Return the public size of every client: its training examples, or groups of them where these are the unit."""
    return [client.size for client in partition.clients]


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


def load_data(config: RunConfig, load: Load = load_fresh) -> Dataset:
    """Load the data set.

    Raises:
        DataError: it is missing or damaged; if the model is missing, too, the message says both.
    """
    try:
        dataset: Dataset = load(config.data)
    except DataError as error:
        check_found = getattr(config.backbone, "check_found", lambda: None)
        try:
            check_found()
        except HushpromptError as other:
            raise DataError(f"{error}\nNor is the model there. {other}") from error
        raise
    return dataset


def load_model(config: RunConfig, dataset: Dataset, arms: Sequence[Arm], load: Load = load_fresh) -> PromptedModel:
    """Load the backbone, and see that every arm's method fits it before anything is encoded or trained.

    Raises:
        ConfigError: a method's settings are impossible for this model or these class names, or it needs features that
            the backbone does not have.
        DataError: the backbone's weights give no finite score.
    """
    num_trained = num_trained_classes(config, dataset)
    backbone = load_backbone(config, dataset, load)
    stages = [stage for whole in arms for stage in whole.stages]
    for arm in stages:
        check_needs(arm.method, backbone)
        if dataset.is_open:
            check_answers(backbone, arm.method)
    device = place(backbone, config.runtime.device)
    names = () if dataset.is_open else dataset.class_names[:num_trained]
    memory_mb = step_memory_mb(config.runtime.memory_mb, device)
    model = prompted(backbone, names, device, memory_mb, config.runtime.prefix_cache_mb)
    for arm in stages:
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


def assemble(
    config: RunConfig,
    model: PromptedModel,
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

    train_texts = texts_of(model, dataset.splits["train"], config)
    quiz = quiz_of(model, dataset.splits[config.evaluation.split], config)
    train = load("train")
    scored = load(config.evaluation.split)
    eval_features = {kind: scored_features(model, stored) for kind, stored in scored.items()}
    eval_labels = torch.from_numpy(dataset.splits[config.evaluation.split].labels)
    return Federation(
        model=model,
        train_features=train,
        train_labels=torch.from_numpy(dataset.splits["train"].labels),
        eval_features=eval_features,
        eval_labels=eval_labels,
        partition=partition,
        splits=client_splits(
            partition,
            config.evaluation.split,
            dataset.splits[config.evaluation.split].groups if config.privacy.privacy_unit == "group" else None,
        ),
        checksums={
            f"{name} ({kind})": stored.checksum
            for name, kinds in (("train", train), (config.evaluation.split, scored))
            for kind, stored in kinds.items()
        },
        new=None if dataset.is_open else _new_images(model, dataset, eval_features, eval_labels),
        train_texts=train_texts,
        quiz=quiz,
        declared=declared_classes(config, dataset.class_names[: num_trained_classes(config, dataset)]),
    )


def scored_features(model: PromptedModel, stored: StoredFeatures) -> Float[Tensor, "n *m d"]:
    """Return features where they are scored: tokens of a generative model, which are many, stay in their file."""
    is_generative = model.backbone.capabilities.num_tokens is not None
    return stored.as_stored() if is_generative else stored.tensor().to(model.device)


def num_trained_classes(config: RunConfig, dataset: Dataset) -> int:
    """Return the number of classes that clients train on, which come first."""
    total = len(dataset.class_names)
    wanted = config.evaluation.base_classes
    return total if wanted is None else num_base_classes(wanted, total)


def _new_images(
    model: PromptedModel, dataset: Dataset, features: Mapping[FeatureKind, Tensor], labels: Int[Tensor, " n"]
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
    new_model = prompted(model.backbone, new_names, device=model.device, memory_mb=model.memory_mb)
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
    """Say what a plan guarantees to the image with the most copies in one training set.

    "" where there is none, and where the guarantee is for a client, with all that it has.

    Args:
        plan: of what is trained.
        repeated: by client, how many images stand so many times in its training set.
    """
    audience = plan.config.audience
    claimed = plan.guarantees()[audience] if repeated and plan.channels else None
    if claimed is None or math.isinf(claimed.epsilon) or claimed.privacy_unit == "client":
        return ""
    client_id, num_copies = max(((who, max(counts)) for who, counts in repeated.items()), key=lambda pair: pair[1])
    epsilon = epsilon_of_copies(plan, audience, num_copies, client_id)
    return statements.copies_statement(claimed, epsilon, num_copies, plan.release_plan.noise_source)
