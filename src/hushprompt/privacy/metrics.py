"""Evaluation counts that leave their clients: how much noise they get, and what one evaluation image then risks.

A release gives, for each of k clients' prompts, how many of the client's own evaluation images it gets right (local)
and how many of all other clients' (neighbor). Unit: one evaluation image of one client, one more or less; how many
images each client has is public, so accuracies are functions of the counts.

**Sensitivity.** An image of client j enters the local count of client j, and the neighbor count of each of the k - 1
other clients. It moves each by 0 or 1. So it moves the local counts [k] by at most 1 and the neighbor counts [k] by at
most sqrt(k - 1) in L2, and all of them by sqrt(k). An image that is exchanged moves them by no more.

**Groups.** Where training protects groups, a group of one client's evaluation images takes the place of an image: it
adds the share of its images that are right, in [0, 1], and client sizes count groups.

**Noise.** The two vectors are two Gaussian releases of one image with multipliers z_l and z_n, which are one with
1/z^2 = 1/z_l^2 + 1/z_n^2. The local counts get the share (k - 1) / k of 1/z^2: then clients of one size have equal
noise on both accuracies, because k - 1 times as many images stand behind a neighbor count. Releases compose adaptively
as unsampled Gaussians: every image enters every release.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Int64

from hushprompt import checks
from hushprompt.errors import PrivacyError
from hushprompt.privacy import accounting
from hushprompt.privacy.guarantee import Guarantee, guarantee
from hushprompt.privacy.noise import add_gaussian, add_secure_gaussian
from hushprompt.privacy.releases import GaussianReleases
from hushprompt.privacy.statements import in_units

LOCAL_SENSITIVITY = 1.0
"""How far one evaluation image moves the local counts: it is in one of them."""
UNITS = {"group": "evaluation group"}
"""What is protected where training protects groups; else one evaluation image."""


def neighbor_sensitivity(num_clients: int) -> float:
    """Return how far, in L2, one evaluation image moves the neighbor counts [k]: it is in k - 1 of them.

    >>> neighbor_sensitivity(10)
    3.0
    """
    return math.sqrt(num_clients - 1)


@dataclass(frozen=True, kw_only=True)
class RightAnswers:
    """Counts of one release, with or without noise."""

    local: Int64[np.ndarray, " k"] | Float64[np.ndarray, " k"]
    """[k] of each client's own evaluation images, how many its prompt gets right."""
    neighbor: Int64[np.ndarray, " k"] | Float64[np.ndarray, " k"]
    """[k] of all other clients' evaluation images, how many the client's prompt gets right."""


@dataclass(frozen=True, kw_only=True)
class MetricsPlan:
    """Noise and guarantee of all evaluation counts of a run, over all its arms; made by `make_metrics_plan`."""

    num_clients: int
    num_releases: int
    """Releases of a run that goes through; one that is stopped early makes fewer."""
    delta: float
    noise_multiplier_local: float
    """Noise std over `LOCAL_SENSITIVITY`."""
    noise_multiplier_neighbor: float
    """Noise std over `neighbor_sensitivity`; inf releases none, where there is no other client."""
    noise_source: Literal["seeded", "secure"]
    unit: str = "evaluation image"
    """What is protected: "evaluation image" or "evaluation group"."""
    group_word: str = ""
    """The config's word for a group."""

    @property
    def counted(self) -> str:
        """What counts count, in a statement."""
        return in_units("images", self.group_word.partition("'s ")[0] or "image", "image")

    @property
    def std_local(self) -> float:
        """Standard deviation of the noise on a local count, in images, or groups."""
        return self.noise_multiplier_local * LOCAL_SENSITIVITY

    @property
    def std_neighbor(self) -> float:
        """Standard deviation of the noise on a neighbor count, in images; 0 where there is no other client."""
        if self.num_clients == 1:
            return 0.0
        return self.noise_multiplier_neighbor * neighbor_sensitivity(self.num_clients)

    def release(self, answers: RightAnswers, rng: np.random.Generator) -> RightAnswers:
        """Add noise to the counts of one evaluation.

        Guarantee: one Gaussian mechanism for one evaluation image, of the multiplier that both together amount to.

        Args:
            answers: true counts, of all clients.
            rng: noise stream of this release; not used where noise is secure.

        Raises:
            PrivacyError: the counts are of another number of clients than the noise is for.
        """
        if len(answers.local) != self.num_clients or len(answers.neighbor) != self.num_clients:
            raise PrivacyError(
                f"Counts of {len(answers.local)} and {len(answers.neighbor)} clients came for a release that is "
                f"planned for {self.num_clients}."
            )
        local = self._noisy(answers.local, self.std_local, LOCAL_SENSITIVITY, rng)
        if self.num_clients == 1:  # no image is anyone's neighbor, so the count is 0 whatever the data
            return RightAnswers(local=local, neighbor=np.zeros(1))
        sensitivity = neighbor_sensitivity(self.num_clients)
        return RightAnswers(local=local, neighbor=self._noisy(answers.neighbor, self.std_neighbor, sensitivity, rng))

    def releases(self, num_releases: int) -> GaussianReleases:
        """Return what so many releases amount to for one evaluation image."""
        z = accounting.combine_noise_multipliers(self.noise_multiplier_local, self.noise_multiplier_neighbor)
        return GaussianReleases(num_steps=num_releases, noise_multiplier=z)

    def guarantee(self, num_releases: int | None = None) -> Guarantee:
        """Account for so many releases; None: all that are planned."""
        held = guarantee(
            audience="whoever sees the accuracies",
            releases=self.releases(self.num_releases if num_releases is None else num_releases),
            delta=self.delta,
            relation="add_remove",
            unit=self.unit,
            sampling_description=in_units(
                "every image is in every release, no amplification claimed",
                self.group_word.partition("'s ")[0] or "image",
                "image",
            ),
        )
        return dataclasses.replace(held, noise_source=self.noise_source, group_word=self.group_word)

    def _noisy(
        self, counts: np.ndarray, std: float, sensitivity: float, rng: np.random.Generator
    ) -> Float64[np.ndarray, " k"]:
        """Add noise from the source that the config names."""
        value = torch.from_numpy(counts.astype(np.float64))
        if self.noise_source == "secure":
            return add_secure_gaussian(value, std, sensitivity).numpy()
        return add_gaussian(value, std, rng).numpy()


def make_metrics_plan(
    *,
    epsilon: float,
    delta: float,
    num_releases: int,
    client_sizes: list[int],
    noise_source: Literal["seeded", "secure"],
    privacy_unit: str = "example",
    group_word: str = "",
) -> MetricsPlan:
    """Calibrate the noise of a run's evaluation counts.

    Args:
        epsilon: target over all releases, finite and greater than 0.
        delta: below 1 / (evaluation images of the largest client).
        num_releases: evaluations over all arms of the run, at least 1.
        client_sizes: public number of evaluation images of every client, or of groups of them.
        noise_source: as in the privacy section.
        privacy_unit: as in the privacy section: where it is a group, groups of evaluation images are protected.
        group_word: as in the privacy section.

    Raises:
        PrivacyError: delta allows publishing an image outright.
    """
    checks.positive(metrics_epsilon=epsilon, num_releases=num_releases)
    checks.finite(metrics_epsilon=epsilon)
    largest, unit = max(client_sizes), UNITS.get(privacy_unit, "evaluation image")
    if delta * largest >= 1:
        raise PrivacyError(
            f"evaluation.metrics_delta must be below 1 / ({unit}s of the largest client) = 1 / {largest} = "
            f"{1 / largest:.3g}, got {delta:g}: a larger delta allows publishing one outright."
        )
    num_clients = len(client_sizes)
    z = accounting.calibrate(
        target_epsilon=epsilon, delta=delta, num_steps=num_releases, sampling_prob=1.0, relation="add_remove"
    )
    # 1/z_l^2 = share / z^2 and 1/z_n^2 = (1 - share) / z^2. Rounding up keeps the combination at or above z.
    share = (num_clients - 1) / num_clients if num_clients > 1 else 1.0
    z *= 1 + 1e-9
    return MetricsPlan(
        num_clients=num_clients,
        num_releases=num_releases,
        delta=delta,
        noise_multiplier_local=z / math.sqrt(share),
        noise_multiplier_neighbor=z / math.sqrt(1 - share) if num_clients > 1 else math.inf,
        noise_source=noise_source,
        unit=unit,
        group_word=group_word if privacy_unit == "group" else "",
    )
