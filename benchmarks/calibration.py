"""How long it takes to find the noise for a budget, with nothing in the cache."""

from __future__ import annotations

from typing import Any

from benchmarks.measure import in_process, measured
from benchmarks.rows import Row
from hushprompt.config import parse as configs
from hushprompt.federation.planning import plan_arms
from hushprompt.privacy.accounting import calibrate
from hushprompt.privacy.guarantee import guarantee
from hushprompt.privacy.releases import GaussianReleases

TITLE = "Calibration of noise, nothing cached"
TARGET = 2.0
DELTA = 1e-5
CASES = (
    (0.01, 100, 1.0, "add_remove"),
    (2.0, 100, 1.0, "replace_one"),
    (2.0, 40, 0.05, "add_remove"),
    (8.0, 100, 0.1, "add_remove"),
    (0.4, 100, 0.1, "add_remove"),
    (0.05, 100, 0.1, "add_remove"),
    (2.0, 100, 0.05, "replace_one"),
    (2.0, 2000, 0.1, "add_remove"),
    (1.0, 10000, 0.001, "add_remove"),
)
"""Target epsilon, releases, sampling probability, relation: without sampling, the presets', and wider."""


def rows(*, is_short: bool) -> list[Row]:
    """Measure all; a short run is no shorter."""
    found = [one(*case) for case in CASES]
    first, again = in_process(preset)
    return [
        *found,
        Row(
            name="all rows of the embedded preset, again, against the first time", figure="speedup",
            ours=again, reference=first, note="what was calibrated and accounted for is kept by its inputs",
        ),
    ]  # fmt: skip


def one(epsilon: float, num_steps: int, prob: float, relation: Any) -> Row:
    """Calibrate, and state the guarantee with all cross-checks."""

    def work() -> None:
        z = calibrate(target_epsilon=epsilon, delta=DELTA, num_steps=num_steps, sampling_prob=prob, relation=relation)
        releases = GaussianReleases(num_steps=num_steps, noise_multiplier=z, sampling_prob=prob)
        guarantee(
            audience="personal", releases=releases, delta=DELTA, relation=relation, unit="example",
            sampling_description="",
        )  # fmt: skip

    cost = measured(work)[1]
    sampling = "no sampling" if prob == 1 else f"sampling {prob:g}"
    return Row(
        name=f"epsilon {epsilon:g}, {num_steps:,} releases, {sampling}, {relation}", figure="amount",
        ours=cost.seconds, target=TARGET, ours_mb=cost.peak_mb,
    )  # fmt: skip


def preset() -> tuple[float, float]:
    """Plan the preset's rows, and do it again."""
    config = configs.load(configs.locate(None))
    first, again = (measured(lambda: plan_arms(config, [400] * 10))[1].seconds for _ in range(2))
    return first, again
