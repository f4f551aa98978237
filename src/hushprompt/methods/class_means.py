"""Private class means: one release of each class's sum of unit-norm features; images go to the nearest noisy mean.

Source: DPPL-Mean of Wahdany, Jagielski, Dziedzic, Boenisch, "Differentially Private Prototypes for Imbalanced Transfer
Learning", AAAI 2025 (arXiv:2406.08039). They estimate each class's mean by CoinPress; here it is the Gaussian mechanism
on sums, because features on the unit sphere have a public bound and the length of a mean decides nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hushprompt.methods.base import Batch, NoState, StepInfo, Upload
from hushprompt.methods.linear_head import OneReleaseHead, own_classes
from hushprompt.models.base import TextKind
from hushprompt.privacy.config import Channel
from hushprompt.privacy.mechanisms.base import ClassRows, Mechanism
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.registry import METHODS
from hushprompt.statistics.head import Head, cosine_head


@dataclass(frozen=True)
class ClassSums:
    """What was released."""

    sums: Float[Tensor, "c d"]
    """Noisy sum of each class's features, over the number of all images, in clip norms."""


@METHODS.register("class_means")
@dataclass(frozen=True, kw_only=True)
class ClassMeans(OneReleaseHead):
    """The `method` section of private class means: every example, once, no sampling."""

    title: ClassVar[str] = "Class means"
    payload: ClassVar[tuple[str, ...]] = ("sums",)
    needs_text: ClassVar[TextKind] = "none"
    mechanism: ClassVar[str] = "class_sums"
    parts: ClassVar[tuple[float, ...]] = (1.0,)

    def init(self, model: PromptModel, rng: np.random.Generator) -> tuple[ClassSums, NoState]:
        """Return a state without any release."""
        return ClassSums(torch.zeros(model.num_classes, model.backbone.feature_dim, device=model.device)), NoState()

    def client_step(
        self,
        model: PromptModel,
        shared: ClassSums,
        personal: NoState,
        batch: Batch,
        mechanism: Mechanism,
        rng: np.random.Generator,
    ) -> tuple[Upload, NoState, StepInfo]:
        """Sum the features of each class; unit norm is the bound of a row."""
        rows = ClassRows(batch.image_features.cpu(), batch.labels.cpu(), own_classes(batch, model.num_classes))
        return Upload(mechanism.clip_in_classes(Channel.GLOBAL, rows)), personal, StepInfo(math.nan)

    def server_step(self, shared: ClassSums, released: Float[Tensor, "c d"]) -> ClassSums:
        """Keep what was released."""
        return ClassSums(released)

    def head(self, model: PromptModel, shared: ClassSums) -> Head:
        """Return the cosine with each noisy mean, whose length is that of its sum; 0 for a class that nobody holds."""
        return cosine_head(shared.sums.cpu(), model.logit_scale)
