"""What accountants compose: adaptive Gaussian releases, as one unit meets them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import dp_accounting

from hushprompt import checks
from hushprompt.errors import PrivacyError


@dataclass(frozen=True, kw_only=True)
class GaussianReleases:
    """Adaptive releases of sums of clipped contributions, each with Gaussian noise, as one example meets them."""

    num_steps: int
    """Releases T that an example can take part in."""
    noise_multiplier: float
    """Noise std over the clip norm, which is the add/remove sensitivity; inf releases nothing, 0 adds no noise."""
    sampling_prob: float = 1.0
    """Probability that an example takes part in a release (Poisson); 1 claims no amplification."""

    def __post_init__(self) -> None:
        checks.non_negative(num_steps=self.num_steps, noise_multiplier=self.noise_multiplier)
        if not 0 < self.sampling_prob <= 1:
            raise PrivacyError(f"sampling_prob must lie in (0, 1], got {self.sampling_prob}.")

    @property
    def is_empty(self) -> bool:
        """True if nothing is released."""
        return self.num_steps == 0 or math.isinf(self.noise_multiplier)

    def event(self) -> dp_accounting.DpEvent:
        """Describe the releases to dp_accounting."""
        if self.is_empty:
            return dp_accounting.NoOpDpEvent()
        release = dp_accounting.GaussianDpEvent(self.noise_multiplier)
        if self.sampling_prob < 1:
            release = dp_accounting.PoissonSampledDpEvent(self.sampling_prob, release)
        return dp_accounting.SelfComposedDpEvent(release, self.num_steps)
