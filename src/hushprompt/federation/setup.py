"""From a config to what the loop needs: the federation (model, data, clients) and the rows of the table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt import seeding
from hushprompt.backbones.cache import Progress, image_features
from hushprompt.backbones.feature_files import StoredFeatures
from hushprompt.backbones.prompts import PromptModel
from hushprompt.config import RunConfig
from hushprompt.data.base import Dataset
from hushprompt.data.partition import Partition
from hushprompt.errors import ConfigError
from hushprompt.evaluation.splits import ClientSplit, client_splits
from hushprompt.methods.base import Method
from hushprompt.privacy.plan import PrivacyPlan, make_plan
from hushprompt.registry import METHODS


@dataclass(frozen=True)
class Row:
    """One line of the table: a method under a privacy plan."""

    label: str
    """Unique in its run; also keys the row's batches and noise."""
    method_name: str
    method: Method
    plan: PrivacyPlan

    @property
    def num_rounds(self) -> int:
        """Rounds of training; 0 for a method that learns nothing."""
        return self.plan.num_rounds


@dataclass(frozen=True)
class Federation:
    """Model, data and clients, ready to train."""

    model: PromptModel
    train_features: StoredFeatures
    """Stay on the disk; a step reads the rows of its batch."""
    train_labels: Int[Tensor, " n"]
    eval_features: Float[Tensor, "m d"]
    """A window onto the file where it is float32."""
    eval_labels: Int[Tensor, " m"]
    partition: Partition
    splits: tuple[ClientSplit, ...]


def cut(config: RunConfig, dataset: Dataset) -> Partition:
    """Cut a data set into the config's clients.

    Raises:
        ConfigError: the cut is impossible, or the data set lacks the split that is to be scored.
    """
    if config.evaluation.split not in dataset.splits:
        raise ConfigError(
            f"evaluation.split is {config.evaluation.split!r}, but {dataset.name} has only: "
            f"{', '.join(sorted(dataset.splits))}."
        )
    partition: Partition = config.partition.partition(dataset, seeding.stream(config.seed, "partition"))
    return partition


def client_sizes(partition: Partition) -> list[int]:
    """Give the public number of training examples of every client."""
    return [len(client.indices["train"]) for client in partition.clients]


def load_model(config: RunConfig, dataset: Dataset, rows: Sequence[Row]) -> PromptModel:
    """Load the backbone, and see that every row's method fits it before anything is encoded or trained.

    Raises:
        ConfigError: a method's settings are impossible for this model or these class names.
    """
    model = PromptModel(config.backbone.load(), dataset.class_names, memory_mb=config.runtime.memory_mb)
    for row in rows:
        row.method.init(model, seeding.stream(config.seed, "init"))
    return model


def assemble(
    config: RunConfig, model: PromptModel, dataset: Dataset, partition: Partition, on_progress: Progress
) -> Federation:
    """Encode the images once, or take their features from the cache."""
    train, scored = (
        image_features(model.backbone, dataset, split, config.runtime.cache_path, config.features, on_progress)
        for split in ("train", config.evaluation.split)
    )
    return Federation(
        model=model,
        train_features=train,
        train_labels=torch.from_numpy(dataset.splits["train"].labels),
        eval_features=scored.tensor(),
        eval_labels=torch.from_numpy(dataset.splits[config.evaluation.split].labels),
        partition=partition,
        splits=client_splits(partition, config.evaluation.split),
    )


def plan_rows(config: RunConfig, sizes: list[int]) -> list[Row]:
    """Give the rows of a run, references first; calibrates all noise and refuses what the theorem does not cover.

    Args:
        config: what to run.
        sizes: public number of training examples of every client.

    Raises:
        PrivacyError: the configuration is outside the theorem.
    """
    wanted = [(entry.method, entry.epsilon) for entry in config.references] + [(config.method, None)]
    rows: list[Row] = []
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
        plan = make_plan(
            privacy,
            config.sampling,
            channels=method.channels,
            num_rounds=config.training.num_rounds if method.channels else 0,
            client_sizes=sizes,
        )
        name = METHODS.name_of(method)
        label = _label(name, plan)
        num_same = sum(row.label.partition(" #")[0] == label for row in rows)
        rows.append(Row(f"{label} #{num_same + 1}" if num_same else label, name, method, plan))
    return rows


def _label(method_name: str, plan: PrivacyPlan) -> str:
    """Name a row by its method and budget."""
    if not plan.channels:
        return method_name
    if not any(plan.noise_multipliers.values()):
        return f"{method_name}, no noise"
    if plan.config.epsilon is None:
        return f"{method_name}, given noise"
    return f"{method_name}, epsilon {plan.config.epsilon:g}"
