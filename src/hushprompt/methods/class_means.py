"""Private class means: one release of each class's sum of unit-norm features; images go to the nearest noisy mean.

Source: DPPL-Mean of Wahdany, Jagielski, Dziedzic, Boenisch, "Differentially Private Prototypes for Imbalanced Transfer
Learning", AAAI 2025 (arXiv:2406.08039). They estimate each class's mean by CoinPress; here it is the Gaussian mechanism
on sums, because features on the unit sphere have a public bound and the length of a mean decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hushprompt.methods.base import NoState
from hushprompt.methods.linear_head import OneReleaseHead, ReleasedSums
from hushprompt.models.base import TextKind
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.registry import METHODS
from hushprompt.statistics.head import Head, cosine_head


@METHODS.register("class_means")
@dataclass(frozen=True, kw_only=True)
class ClassMeans(OneReleaseHead):
    """The `method` section of private class means: every example, once, no sampling."""

    title: ClassVar[str] = "Class means"
    needs_text: ClassVar[TextKind] = "none"
    mechanism: ClassVar[str] = "class_sums"
    parts: ClassVar[tuple[float, ...]] = (1.0,)

    def init(self, model: PromptModel, rng: np.random.Generator) -> tuple[ReleasedSums, NoState]:
        """Return a state with a row of features a class, without any release."""
        return self.before_release(model, model.num_classes, model.backbone.feature_dim), NoState()

    def head(self, model: PromptModel, shared: ReleasedSums) -> Head:
        """Return the cosine with each noisy mean, whose length is that of its sum; 0 for a class that nobody holds."""
        return cosine_head(shared.sums.cpu(), model.logit_scale)
