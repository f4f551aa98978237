"""Private least squares: second moments of features, released once, and a ridge regression on class indicators.

Sources: sufficient statistics with Gaussian noise, Wang 2018 (AdaSSP, arXiv:1803.02596); on image features, Mehta et
al., "Differentially Private Image Classification from Features", TMLR 2023 (arXiv:2211.13403), least squares and the
feature covariance of DP-FC; one shot in a federation, Guan et al., FedCGS 2025 (arXiv:2503.06962), without privacy.
Sensitivity and proof are in `privacy/mechanisms/second_moments.py`; docs/methods/least-squares.md has what differs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from hushprompt import checks
from hushprompt.methods.base import NoState
from hushprompt.methods.linear_head import OneReleaseHead, ReleasedSums
from hushprompt.models.base import TextKind
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.registry import METHODS
from hushprompt.statistics.head import Head

TEXT_LENGTH = 0.45
"""Length of a text feature as the weights that ridge pulls toward with start = "zero_shot"."""


@METHODS.register("least_squares")
@dataclass(frozen=True, kw_only=True)
class LeastSquares(OneReleaseHead):
    """The `method` section of private least squares: every example, once, no sampling."""

    title: ClassVar[str] = "Least squares"
    mechanism: ClassVar[str] = "second_moments"
    takes_late: ClassVar[bool] = False  # class sums of more images than the Gram matrix is of solve no regression

    start: Literal["zero", "zero_shot"] = "zero"
    """What the ridge pulls the weights toward: nothing, or the class text features."""
    ridge: float = 1.0
    """Penalty on the squared weights, in images along each direction; that of the noise is added to it."""
    noise_ridge: float = 1.0
    """Penalty in units of the largest eigenvalue that the noise of the Gram matrix alone is expected to have."""
    gram_share: float = 0.1
    """Share of the release, as 1 / noise multiplier^2, that the Gram matrix takes; class sums get the rest."""

    def __post_init__(self) -> None:
        checks.positive(ridge=self.ridge)
        checks.non_negative(noise_ridge=self.noise_ridge)
        checks.in_range(1e-6, 1 - 1e-6, gram_share=self.gram_share)

    @property
    def needs_text(self) -> TextKind:
        """Text features only where the ridge pulls toward them."""
        return "features" if self.start == "zero_shot" else "none"

    @property
    def parts(self) -> tuple[float, ...]:
        """Shares of the two messages."""
        return self.gram_share, 1 - self.gram_share

    def init(self, model: PromptModel, rng: np.random.Generator) -> tuple[ReleasedSums, NoState]:
        """Return a state without any release: X^T X [d, d] above Y^T X, a row a class."""
        width = model.backbone.feature_dim
        return self.before_release(model, width + model.num_classes, width), NoState()

    def rows_of(self, stage: int, shape: torch.Size) -> slice:
        """The Gram matrix [d, d] comes first."""
        return slice(shape[1]) if stage == 0 else slice(shape[1], None)

    def head(self, model: PromptModel, shared: ReleasedSums) -> Head:
        """Return W = (Y^T X + lambda W0) (X^T X + lambda)^-1, with the Gram matrix made symmetric and non-negative."""
        width = model.backbone.feature_dim
        sums = shared.sums.cpu().double()
        penalty = self._penalty(width)
        values, vectors = torch.linalg.eigh((sums[:width] + sums[:width].T) / 2)
        right = sums[width:] + penalty * self._toward(model)
        weights = right @ (vectors / (values.clamp(min=0) + penalty)) @ vectors.T
        return Head(weights, model.logit_scale)

    def _penalty(self, width: int) -> float:
        """Return lambda: the ridge and, where there is noise, the spectral norm s sqrt(2 d) of the symmetric noise."""
        task = self._of
        num_draws = len(task.client_sizes) if task.noise_at == "client" else task.num_draws
        std = task.noise_multiplier * math.sqrt(num_draws / self.gram_share)
        return self.ridge + self.noise_ridge * std * math.sqrt(2 * width)

    def _toward(self, model: PromptModel) -> Float64[Tensor, "..."]:
        """Return W0 [c, d], or 0."""
        if self.start == "zero":
            return torch.zeros((), dtype=torch.float64)
        return TEXT_LENGTH * model.template_features.cpu().double()
