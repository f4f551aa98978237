"""A client's own examples: all of a data set of its own, or its share of the run's for a trial."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from hushprompt.config.schema import RunConfig
from hushprompt.data.base import Dataset
from hushprompt.data.groups import NO_GROUPS, with_groups
from hushprompt.data.partitions.base import ClientShard, Partition
from hushprompt.deployment.agreement import Offer
from hushprompt.deployment.client_texts import for_the_owner
from hushprompt.deployment.config import ClientConfig
from hushprompt.errors import DataError, ProtocolError
from hushprompt.features.cache import folder_for, image_features
from hushprompt.features.store import FeatureFolder, StoredFeatures
from hushprompt.federation.questions import check_one_question
from hushprompt.federation.setup import make_partition
from hushprompt.models.base import FeatureKind
from hushprompt.prompts.prompted_model import PromptedModel
from hushprompt.user_text import nfc
from hushprompt.words import first_of

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examples:
    """Which examples of a data set are this client's."""

    dataset: Dataset
    index: dict[str, np.ndarray]
    """Sorted rows of each split."""
    groups: Int64[np.ndarray, " n"] | None = None
    """Number of each training example's group, where groups are the privacy unit."""

    @property
    def shard(self) -> ClientShard:
        """The examples as the only client of a partition."""
        return ClientShard(0, (), self.index, groups=self.groups)

    @property
    def size(self) -> int:
        """Training examples, or groups of them where these are the unit: the one number that is made public."""
        return self.shard.size

    def groups_of(self, split: str) -> Int64[np.ndarray, " n"] | None:
        """Return the group of each example of a split, where groups are the privacy unit."""
        groups = self.dataset.splits[split].groups
        return None if self.groups is None or groups is None else groups[self.index[split]]

    def folder(self, model: PromptedModel, config: RunConfig, split: str, kind: FeatureKind) -> FeatureFolder:
        """Return where features of a split lie or will lie."""
        where = config.runtime.cache_path
        return folder_for(model.backbone, self.dataset, split, where, config.features, kind)

    def features(
        self, model: PromptedModel, config: RunConfig, split: str, kind: FeatureKind
    ) -> tuple[StoredFeatures, Int[Tensor, " n"], Int[Tensor, " m"]]:
        """Return features of a split, cached or encoded now, labels [n] of all its rows, and the own rows."""
        where = config.runtime.cache_path
        stored = image_features(model.backbone, self.dataset, split, where, config.features, kind=kind)
        return stored, torch.from_numpy(self.dataset.splits[split].labels), torch.from_numpy(self.index[split])


def open_examples(client: ClientConfig, offer: Offer) -> Examples:
    """Load a client's data, and see that their classes are the federation's.

    Raises:
        ProtocolError: other classes, or none in the config of an owner who does not trust the server; no training
            example, no groups where these are the unit, or a share that does not exist.
        DataError: the data cannot be read, or lack the split that is to be scored: which there are is not for the
            server.
    """
    groups: Int64[np.ndarray, " n"] | None = None
    is_unit = offer.run_config.privacy.privacy_unit == "group"
    if client.share is not None:
        section = client.data or offer.run_config.data
        if client.data is None and not getattr(section, "is_embedded", False):
            raise ProtocolError("The run's data are files. Whoever takes a share of them names them as [data], too.")
        dataset = section.load()
        _check_split(dataset, offer)
        _check_groups(dataset, is_unit=is_unit)
        clients = make_partition(offer.run_config, dataset).clients
        if client.share.client >= len(clients):
            raise ProtocolError(
                f"share.client must be below {len(clients)}, the run's clients, got {client.share.client}."
            )
        shard = clients[client.share.client]
        index, groups = dict(shard.indices), shard.groups
    else:
        section = client.data
        is_unnamed = getattr(section, "classes", None) == () and not section.classes_file
        if is_unnamed and getattr(section, "needs_classes", True):
            _check_classes_may_be_asked(client)
            section = dataclasses.replace(section, classes=offer.class_names)
        dataset = section.load()
        _check_split(dataset, offer)
        _check_groups(dataset, is_unit=is_unit)
        index = {name: np.arange(len(split)) for name, split in dataset.splits.items()}
    _check_questions(offer, dataset, index)
    if not dataset.is_open and [*map(nfc, dataset.class_names)] != [*map(nfc, offer.class_names)]:
        LOG.warning("the data have %d classes: %s", len(dataset.class_names), ", ".join(dataset.class_names))
        raise ProtocolError(  # what classes there are here is not the server's business
            f"This client's data have other classes than the federation has, or in another order; the federation has "
            f"{len(offer.class_names)}, {first_of(offer.class_names, 3)}."
        )
    if len(index["train"]) == 0:
        raise ProtocolError("This client has no training example.")
    if is_unit and groups is None:
        (shard,) = with_groups(Partition((ClientShard(0, (), index),)), dataset).clients
        groups = shard.groups
    return Examples(dataset, index, groups)


def _check_classes_may_be_asked(client: ClientConfig) -> None:
    """Raise ProtocolError where the server's list of classes would be tried on data of an owner who does not trust it.

    Data that have another class are refused, so a server that offers a list without one class would learn from the
    answer whether it is there, and no noise is on that.
    """
    if client.owner.require_noise_at != "any":
        raise ProtocolError(
            "This client's owner has to name the classes of its data: data.classes_file or data.classes in "
            "client.toml. To try the server's list on them would tell it which classes there are."
        )


def _check_split(dataset: Dataset, offer: Offer) -> None:
    """Raise DataError, which the owner alone is told, where the split that is to be scored is missing."""
    split = offer.run_config.evaluation.split
    if split not in dataset.splits:
        raise DataError(
            f"The federation scores {split} examples (evaluation.split), and these data have only: "
            f"{', '.join(sorted(dataset.splits))}. Add such a split to them, or agree on another one."
        )


def _check_questions(offer: Offer, dataset: Dataset, index: dict[str, np.ndarray]) -> None:
    """Raise ProtocolError unless both have questions, or both classes.

    Raises:
        DataError: several questions on one image are each protected alone; which ones, the owner alone is told.
    """
    if dataset.is_open != (not offer.class_names):
        raise ProtocolError("This client's data have classes and the federation's questions, or the other way round.")
    with for_the_owner():
        check_one_question(offer.run_config, dataset, Partition((ClientShard(0, (), index),)))


def _check_groups(dataset: Dataset, *, is_unit: bool) -> None:
    """Raise ProtocolError where groups are the privacy unit and the data name none, or copies are one and they are not.

    What is wrong with the data is told to their owner alone.
    """
    if is_unit and dataset.splits["train"].groups is None:
        LOG.warning("%s", NO_GROUPS.format(dataset=dataset.name))
        raise ProtocolError(
            "The plan protects groups, and this client's data do not say which examples belong together."
        )
    if not is_unit and dataset.duplicates == "group":
        raise ProtocolError('data.duplicates = "group" is for a plan that protects groups, and this one does not.')
