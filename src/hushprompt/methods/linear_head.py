"""What methods share whose scores are linear in the image features: a weight [d] and a bias for each class."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hushprompt.errors import ConfigError
from hushprompt.methods.base import Batch, PublicTask, Published
from hushprompt.models.base import FeatureKind
from hushprompt.privacy.config import Channel
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.statistics.head import Head

Bound = TypeVar("Bound", bound="OneReleaseHead")
HOW = "logit_scale * image_features @ text_features.T, plus bias and log_prior where there are some"


def head_file(head: Head) -> Published:
    """Return a head as the content of a prompt file."""
    tensors = {"text_features": head.text_features, "logit_scale": torch.tensor(head.logit_scale), "bias": head.bias}
    return Published({name: t.float().cpu().contiguous() for name, t in tensors.items() if t is not None}, HOW)


@dataclass(frozen=True, kw_only=True)
class LinearHead:
    """A method with one classifier for all; it adds `head`, which reads the shared state."""

    channels: ClassVar[frozenset[Channel]] = frozenset({Channel.GLOBAL})
    feature_kind: ClassVar[FeatureKind] = "pooled"

    def begin_round(self, shared: Any) -> Any:
        """Return the state as it is: a step needs nothing from where its round began."""
        return shared

    def head(self, model: PromptModel, shared: Any) -> Head:
        """Return the classifier of a state."""
        raise NotImplementedError

    def public_file(self, model: PromptModel, shared: Any) -> Published:
        """Return the classifier."""
        return head_file(self.head(model, shared))

    def personal_file(self, model: PromptModel, shared: Any, personal: Any) -> Published | None:
        """Nothing is personal."""

    def logits(
        self, model: PromptModel, shared: Any, personal: Any, image_features: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n c"]:
        """Score images linearly."""
        return self.head(model, shared).logits(image_features.cpu()).float().to(image_features.device)


@dataclass(frozen=True, kw_only=True)
class OneReleaseHead(LinearHead):
    """A linear head that follows from one release of every example."""

    _task: ClassVar[PublicTask | None] = None
    """Set by `of_task`."""

    def of_task(self: Bound, task: PublicTask) -> Bound:
        """Return the method for a task, which its post-processing needs to know."""
        bound = copy.copy(self)
        object.__setattr__(bound, "_task", task)  # no setting
        return bound

    @property
    def _of(self) -> PublicTask:
        """The task."""
        if self._task is None:
            raise ConfigError(f"{type(self).__name__} belongs to a task: use `of_task` first.")
        return self._task


def own_classes(batch: Batch, num_classes: int) -> Bool[Tensor, " c"]:
    """Return the classes that a client may publicly have: all where nobody declared any."""
    is_own = torch.full((num_classes,), batch.classes is None)
    is_own[list(batch.classes or ())] = True
    return is_own
