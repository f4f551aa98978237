"""What methods share whose scores are linear in the image features: a weight [d] and a bias for each class."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from hushprompt.errors import ConfigError
from hushprompt.methods.base import Batch, PublicTask, Published, StepInfo, Upload
from hushprompt.models.base import FeatureKind
from hushprompt.privacy.config import Channel
from hushprompt.privacy.mechanisms.base import ClassRows, Mechanism
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


@dataclass(frozen=True)
class ReleasedSums:
    """What was released: all that anybody learns of the images is a function of it."""

    sums: Float[Tensor, "rows r"]
    """Noisy sums over all images, in units of the bound of a row; each method says what its rows are."""
    stage: Int64[Tensor, ""]
    """Messages that were released."""


@dataclass(frozen=True, kw_only=True)
class OneReleaseHead(LinearHead):
    """A linear head that follows from one release of every example, in one message or several."""

    payload: ClassVar[tuple[str, ...]] = ("sums", "stage")
    takes_late: ClassVar[bool] = True
    _task: ClassVar[PublicTask | None] = None
    """Set by `of_task`."""

    @property
    def parts(self) -> tuple[float, ...]:
        """Share of the release that each message takes."""
        raise NotImplementedError

    def of_task(self: Bound, task: PublicTask) -> Bound:
        """Return the method for a task, which its post-processing needs to know."""
        bound = copy.copy(self)
        object.__setattr__(bound, "_task", task)  # no setting
        return bound

    def before_release(self, model: PromptModel, num_rows: int, width: int) -> ReleasedSums:
        """Return a state without any release."""
        return ReleasedSums(torch.zeros(num_rows, width, device=model.device), torch.tensor(0, device=model.device))

    def rows_of(self, stage: int, shape: torch.Size) -> slice:
        """Return the rows of the sums that a message fills; all, where it is the only one."""
        return slice(None)

    def client_step(
        self,
        model: PromptModel,
        shared: ReleasedSums,
        personal: Any,
        batch: Batch,
        mechanism: Mechanism,
        rng: np.random.Generator,
    ) -> tuple[Upload, Any, StepInfo]:
        """Sum unit-norm features, which are rows within their bound, as the mechanism does."""
        rows = ClassRows(batch.image_features.cpu(), batch.labels.cpu(), own_classes(batch, model.num_classes))
        return Upload(mechanism.clip_in_classes(Channel.GLOBAL, rows)), personal, StepInfo(math.nan)

    def server_step(self, shared: ReleasedSums, released: Float[Tensor, "rows r"]) -> ReleasedSums:
        """Keep what was released, as sums over images; only the rows of this message say anything."""
        stage = int(shared.stage)
        total = self._total(released, sum(self._of.first.client_sizes), stage)
        sums, own = shared.sums.clone(), self.rows_of(stage, total.shape)
        sums[own] = total[own]
        return ReleasedSums(sums, shared.stage + 1)

    def before_last(self, shared: ReleasedSums) -> ReleasedSums:
        """Return the rows of the first message alone, where there are two; else nothing."""
        num_before = len(self.parts) - 1
        is_known = self._is_first(shared.sums)[:, None] & (num_before > 0)
        return ReleasedSums(shared.sums.where(is_known, 0.0), torch.full_like(shared.stage, num_before))

    def with_late(
        self,
        shared: ReleasedSums,
        released: Float[Tensor, "rows r"],
        num_images: int,
        classes: tuple[int, ...] | None,
    ) -> ReleasedSums:
        """Add the sums of one client's classes to those of all others."""
        num_before = int(self._is_first(shared.sums).sum()) if len(self.parts) > 1 else 0
        kept = torch.zeros(len(shared.sums), dtype=torch.bool, device=shared.sums.device)
        own = range(len(kept) - num_before) if classes is None else classes
        kept[[num_before + label for label in own]] = True
        total = self._total(released, num_images, len(self.parts) - 1)
        return ReleasedSums(shared.sums + total.where(kept[:, None], 0.0), shared.stage)

    def _total(self, released: Float[Tensor, "rows r"], num_images: int, stage: int) -> Float[Tensor, "rows r"]:
        """Return sums over so many images, in units of the bound of a row, from what a message released."""
        return released * num_images / (self._of.clip_norm * math.sqrt(self.parts[stage]))

    def _is_first(self, sums: Float[Tensor, "rows r"]) -> Bool[Tensor, " rows"]:
        """Tell the rows of the first message."""
        is_first = torch.zeros(len(sums), dtype=torch.bool, device=sums.device)
        is_first[self.rows_of(0, sums.shape)] = True
        return is_first

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
