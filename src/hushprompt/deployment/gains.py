"""What a client gained: how many of its own evaluation images were right before and after, as counts with noise.

They leave a client only where the run's config asks (`evaluation.metrics_epsilon`) and its owner allows it
(`owner.max_metrics_epsilon`). Before is the frozen model with its hand template. Both counts are of the same images:
two Gaussian releases of one image each, made once a run, with noise that the client adds itself (Theorem 3).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from hushprompt.config.schema import RunConfig
from hushprompt.evaluation.metrics import accuracy, predicted_classes
from hushprompt.evaluation.splits import ClientSplit, grouped_images
from hushprompt.methods.base import NoState
from hushprompt.methods.zero_shot import ZeroShot
from hushprompt.privacy import statements
from hushprompt.privacy.metrics import MetricsPlan, RightAnswers, make_metrics_plan
from hushprompt.prompts.prompted_model import PromptedModel
from hushprompt.runs import records
from hushprompt.runs.arm import Arm
from hushprompt.runs.metrics import MetricsFile
from hushprompt.runs.records import ArmSummary
from hushprompt.seeding import stream

LogitsFn = Callable[[Float[Tensor, "n *m d"]], Float[Tensor, "n c"]]

ZERO_SHOT = "zero_shot"
"""Name of the method, and label of its row in a result table."""


@dataclass(frozen=True)
class NoisyCounts:
    """What a client tells."""

    right: Float64[Tensor, " 2"]
    """Its own evaluation images that are right before and after, with noise; 0 before, where there is no text."""
    num_images: Float64[Tensor, ""]
    """How many there are, or groups of them where these are the unit, which is public then."""

    @property
    def accuracies(self) -> tuple[float, float]:
        """Accuracies before and after, held in [0, 1]."""
        before, after = (self.right / self.num_images).clamp(0, 1).tolist()
        return before, after


NOTHING = {"right": torch.zeros(2, dtype=torch.float64), "num_images": torch.zeros((), dtype=torch.float64)}
"""Tensors of an answer with counts, without a value."""


def plan_of(config: RunConfig, num_images: int = 1) -> MetricsPlan | None:
    """Return how much noise a client's two counts get; None where none leave.

    Raises:
        PrivacyError: metrics_delta allows publishing one of so many images outright.
    """
    evaluation = config.evaluation
    if evaluation.metrics_epsilon is None:
        return None
    return make_metrics_plan(
        epsilon=evaluation.metrics_epsilon,
        delta=evaluation.metrics_delta,
        num_releases=2,
        client_sizes=[num_images],
        noise_source="seeded" if config.privacy.noise_source == "seeded" else "secure",
        privacy_unit=config.privacy.privacy_unit,
        group_word=config.privacy.group_word,
    )


def statement(config: RunConfig) -> dict[str, str]:
    """Return what a privacy record says of the counts; nothing where none leave."""
    plan = plan_of(config)
    if plan is None:
        return {}
    said = statements.GAINS.format(statement=plan.guarantee().statement(), std=plan.std_local, counted=plan.counted)
    return {"evaluation_images": said}


def zero_shot(model: PromptedModel) -> LogitsFn | None:
    """Return what scores images with the hand template; None where the model has no text."""
    if not model.backbone.capabilities.scores_untrained:
        return None
    return lambda images: ZeroShot().logits(model, NoState(), NoState(), images)


def own_accuracy(score: LogitsFn | None, images: Float[Tensor, "n *m d"], labels: Int[Tensor, " n"]) -> float | None:
    """Return the exact accuracy on a client's own images, which stays there; None without a way to score."""
    if score is None:
        return None
    with torch.no_grad():
        return accuracy(score(images).cpu(), labels)


def release(
    config: RunConfig,
    arm: Arm,
    folder: Path,
    client_id: int,
    scored: tuple[LogitsFn | None, LogitsFn],
    images: Float[Tensor, "n *m d"],
    labels: Int[Tensor, " n"],
    groups: Int64[np.ndarray, " n"] | None = None,
) -> dict[str, Tensor]:
    """Return the tensors of an answer with a client's counts, released once a run; nothing where none leave.

    Args:
        config: of the run.
        arm: of the run; the release is written under its label.
        folder: of the run at the client.
        client_id: whose noise it is.
        scored: logits before (None: the model has no text) and after, none of which depends on how many images there
            are.
        images: the client's own evaluation images.
        labels: theirs.
        groups: number of each one's group, where these are the unit and counts are of groups.
    """
    own = {client_id: np.arange(len(labels))}
    split = ClientSplit(
        client_id, own[client_id], own[client_id], None if groups is None else grouped_images(own, groups)
    )
    plan = plan_of(config, split.num_local)
    if plan is None:
        return {}

    def count(score: LogitsFn | None) -> float:
        if score is None:
            return 0
        with torch.no_grad():
            logits = score(images).cpu()
        return split.count(predicted_classes(logits) == labels.numpy())[0]

    def noisy(which: str, score: LogitsFn | None) -> float:
        right = RightAnswers(local=np.array([count(score)]), neighbor=np.array([0]))
        noise = stream(config.seed, "noise", "metrics", arm.label, "gain", which, client_id)
        return float(plan.release(right, noise).local[0])

    def make() -> RightAnswers:
        counts = [noisy(which, score) for which, score in zip(("before", "after"), scored, strict=True)]
        return RightAnswers(local=np.array(counts), neighbor=np.zeros(2))

    counts = MetricsFile(folder).once(arm, arm.num_rounds, make)
    right = torch.from_numpy(np.asarray(counts.local, dtype=np.float64))
    return dataclasses.asdict(NoisyCounts(right, torch.tensor(float(split.num_local), dtype=torch.float64)))


def of_clients(summary: Path, told: Mapping[str, NoisyCounts], *, has_text: bool) -> list[dict[str, Any]]:
    """Return the entries of a summary that say what clients told, also when the run finished before: each tells once.

    Args:
        summary: file of the run, which may be missing.
        told: by client, now.
        has_text: whether the model scores anything before it is trained.
    """
    arms = records.read_record(summary)["arms"] if summary.exists() else []
    gained = {one["client"]: one for arm in arms[-1:] for one in arm["per_client"]}  # of clients that may be gone now
    for name, counts in told.items():
        before, now = counts.accuracies
        gained[name] = {"client": name, "zero_shot": before if has_text else None, "local": now}
    return list(gained.values())


def reference_of(own: ArmSummary) -> list[ArmSummary]:
    """Return the row of a result table that says what the hand template did on the images that `own` is scored on.

    It is made of the counts that clients told, and learned nothing. None where nobody told, or without text.
    """
    per_client = [
        {"client": one["client"], "local": one["zero_shot"]}
        for one in own.per_client
        if one["zero_shot"] is not None and own.method != ZERO_SHOT
    ]
    if not per_client:
        return []
    accuracies = [float(one["local"]) for one in per_client]
    untrained = dataclasses.replace(own, epsilon=None, noise_source=None, seconds=math.nan, num_rounds=0, stopped=None)
    mean = sum(accuracies) / len(accuracies)
    named = dataclasses.replace(untrained, arm=ZERO_SHOT, method=ZERO_SHOT, title=ZeroShot.title)
    return [dataclasses.replace(named, local=mean, worst_client=min(accuracies), per_client=per_client)]


def lines(clients: list[Mapping[str, Any]], config: RunConfig) -> list[str]:
    """Say what each client gained, from the entries of a summary; nothing where none told."""
    plan, told = plan_of(config), []
    if plan is None:
        return []
    for one in clients:
        before, after = one.get("zero_shot"), one.get("local")
        if after is not None:
            first = "" if before is None else f"zero-shot {100 * before:.1f} %, now "
            told.append(f"{one['client']}: {first}{100 * after:.1f} %")
    if not told:
        return []
    return [f"Own images, from counts with noise of {plan.std_local:.3g} images: {'; '.join(told)}."]
