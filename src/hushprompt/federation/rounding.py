"""Whether the frozen model rounds as little as the noise accounts for.

A guarantee takes an example's gradient to depend on that example alone. A tower computes a batch together, though, and
matrix kernels choose their order of summation by its shape, so last bits depend on who else is in it. The plan makes
noise larger by n rho for that (`ReleasePlan.rounding_margin`); here rho is held against the model itself, with made-up
examples, before anything is charged. No data of anybody enters.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hushprompt import files
from hushprompt.config.values import to_plain
from hushprompt.errors import DataError, PrivacyError
from hushprompt.extras import version_of
from hushprompt.methods.base import Batch
from hushprompt.privacy.clipping import ClippedSum, clip_factors
from hushprompt.privacy.config import Channel
from hushprompt.privacy.mechanisms.base import Release
from hushprompt.privacy.mechanisms.observed import WrappedMechanism
from hushprompt.prompts.generative_model import GenerativeModel
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.prompts.prompted_model import PromptedModel
from hushprompt.prompts.texts import NO_TOKEN, TextTokens
from hushprompt.runs import records
from hushprompt.runs.arm import Arm

HEADROOM = 4
"""Times what is measured must fit into `privacy.rounding`: made-up examples are not the worst."""
LONGEST = 12
"""Tokens of made-up questions and answers."""
PASSES = 2
"""Counted up where gradients are computed in another way: what was measured before says nothing of that."""
MOST_KEPT = 500
"""Measurements beside the cached features; older ones are forgotten."""
LARGEST_BATCH = 256
"""Beyond it kernels are those of this size."""
Rows = Float[Tensor, "..."]
Progress = Callable[[str, int, int], None]


def check_rounding(arm: Arm, model: PromptedModel, cache_dir: Path, on_progress: Progress | None = None) -> None:
    """Refuse a model that rounds more than `privacy.rounding`; measured once, and kept beside the cached features.

    Raises:
        PrivacyError: it rounds more. The message says which bound would do.
    """
    plan = arm.plan.release_plan
    if not (plan.channels and plan.rounding_margin):
        return
    measured = _measured(arm, model, cache_dir, on_progress)
    if HEADROOM * measured > plan.config.rounding:
        raise PrivacyError(
            f"{arm.label}: clipped gradients of this model move by up to {measured:.2g} of the clip norm with the size "
            f"of their batch, and {HEADROOM} times that must fit into privacy.rounding = {plan.config.rounding:g}. Set "
            f"privacy.rounding = {HEADROOM * measured:.1e} or more, or a larger clip norm{_alone(model)}."
        )


def _alone(model: PromptedModel) -> str:
    """Say how a generative model reads each example alone, which others then move by no bit."""
    if not isinstance(model, GenerativeModel) or model.memory_mb == 1:
        return ""
    return ", or runtime.memory_mb = 1, which reads as few examples together as can be"


def measure(arm: Arm, model: PromptedModel, on_progress: Progress | None = None) -> float:
    """Return how far a clipped gradient moves at most, over its clip norm, when others join or leave its batch.

    The method's own step is asked for gradients in batches of many sizes and in another order, at its first prompts.
    """
    largest = _largest_batch(arm)
    batch = _made_up(arm, model, largest)
    shared, personal = arm.method.init(model, np.random.default_rng(0))
    shared = arm.method.begin_round(shared)

    release = arm.plan.release_plan
    count = arm.plan.sampler.expected_batch_size(release.num_rounded // release.config.examples_per_unit)

    def rows_of(some: Batch) -> dict[Channel, Rows]:
        inner = arm.plan.mechanism(
            allowed=Channel.LOCAL,
            expected_count=count,
            rng=np.random.default_rng(0),
            groups=torch.arange(len(some.labels)),  # each row is held against itself
        )
        recorder = _Recorder(inner)
        arm.method.client_step(model, shared, personal, some, recorder, np.random.default_rng(0))
        return recorder.rows

    together = rows_of(batch)
    places = [torch.from_numpy(np.random.default_rng(0).permutation(largest)), *map(torch.arange, _sizes(largest))]
    parts = [(chosen, batch.of(chosen)) for chosen in places]
    if batch.texts is not None:  # a longer text of somebody else makes all wider
        wider = dataclasses.replace(batch, texts=batch.texts.wider(LONGEST))
        parts.append((torch.arange(largest), wider))
    worst = 0.0
    for done, (chosen, some) in enumerate(parts):
        worst = max(worst, _distance(arm, together, rows_of(some), chosen))
        if on_progress is not None:
            on_progress("measuring how the model rounds", done + 1, len(parts))
    return worst


@dataclass(frozen=True)
class _Recorder(WrappedMechanism):
    """Keeps the rows that a step clips, and releases zeros."""

    rows: dict[Channel, Rows] = field(default_factory=dict)

    def clip(self, channel: Channel, grads: Rows) -> ClippedSum:
        """Clip by the inner mechanism, and keep the rows."""
        earlier = self.rows.get(channel, grads[:0])  # of the same step, which may clip chunk by chunk
        self.rows[channel] = torch.cat([earlier, grads.detach()])
        return self.inner.clip(channel, grads)

    def release(self, channel: Channel, summed: ClippedSum) -> Release:
        """Release nothing."""
        return Release(torch.zeros_like(summed.value).float(), self.clip_norms)


def _distance(arm: Arm, together: dict[Channel, Rows], rows: dict[Channel, Rows], chosen: Tensor) -> float:
    """Return the largest distance of rows from those of the same examples together, clipped, over the clip norm."""
    distances = []
    for channel, values in rows.items():
        norm = arm.plan.release_plan.clip_norms[channel]
        moved = _clipped(values, norm) - _clipped(together[channel][chosen.to(values.device)], norm)
        distances.append(float(moved.norm(dim=1).max()) / norm)
    return max(distances, default=0.0)


def _clipped(rows: Rows, norm: float) -> Float[Tensor, "b p"]:
    """Clip rows in float64."""
    flat = rows.flatten(1).double()
    return flat * clip_factors(flat, norm)[:, None]


def _made_up(arm: Arm, model: Any, size: int) -> Batch:
    """Return examples of nobody, from far off every class to right on one."""
    rng = torch.Generator().manual_seed(0)
    if model.backbone.capabilities.num_tokens is not None:
        return _made_up_tokens(model, size, rng)
    texts = _texts(model, rng).cpu().float()
    labels = torch.randint(len(texts), (size,), generator=rng)
    shape: tuple[int, ...] = (size, texts.shape[1])
    nearness = torch.linspace(0, 1, size)[:, None]
    if arm.method.feature_kind == "patches":
        shape = (size, model.backbone.capabilities.num_patches or 1, texts.shape[1])
        nearness = nearness[:, None]
    centers = texts[labels].reshape(size, *[1] * (len(shape) - 2), -1)
    noise = F.normalize(torch.randn(shape, generator=rng), dim=-1)
    return Batch(F.normalize(nearness * centers + noise, dim=-1).to(model.device), labels.to(model.device))


def _made_up_tokens(model: GenerativeModel, size: int, rng: torch.Generator) -> Batch:
    """Return examples of nobody for a generative model: words in no order in the place of an image's tokens."""
    can = model.backbone.capabilities
    words = torch.randint(model.backbone.vocabulary_size, (size, can.num_tokens or 1), generator=rng)
    labels = torch.randint(max(1, model.num_classes), (size,), generator=rng)
    batch = Batch(model.backbone.embed(words.to(model.device)), labels.to(model.device))
    return batch if model.class_names else dataclasses.replace(batch, texts=_made_up_texts(model, size, rng))


def _made_up_texts(model: GenerativeModel, size: int, rng: torch.Generator) -> TextTokens:
    """Return questions and answers of words in no order, of lengths up to `LONGEST`."""

    def some() -> Int[Tensor, "b l"]:
        ids = torch.randint(model.backbone.vocabulary_size, (size, LONGEST), generator=rng)
        lengths = torch.randint(1, LONGEST + 1, (size, 1), generator=rng)
        return torch.where(torch.arange(LONGEST) < lengths, ids, NO_TOKEN)

    return TextTokens(some(), some()).to(model.device)


@torch.no_grad()
def _texts(model: PromptModel, rng: torch.Generator) -> Float[Tensor, "c d"]:
    """Return a direction of each class: a prompt's, the given one, or, where a model has no text, any."""
    text = model.backbone.capabilities.text
    if text == "tower":
        return model.text_features(torch.zeros(1, model.token_width, device=model.device))
    if text == "features":
        return model.template_features
    return F.normalize(torch.randn(model.num_classes, model.backbone.feature_dim, generator=rng), dim=-1)


def _sizes(largest: int) -> list[int]:
    """Return the sizes that are tried: all small ones, then those at powers of two, where kernels change."""
    around = {2**power + more for power in range(4, 9) for more in (-1, 0)}
    return sorted(size for size in {*range(1, 9), *around} if size < largest)


def _largest_batch(arm: Arm) -> int:
    """Return the size of the largest batch that is likely."""
    num, most = arm.plan.release_plan.num_rounded, arm.plan.config.examples_per_unit
    expected = most * arm.plan.sampler.expected_batch_size(num // most)
    return max(2, min(num, LARGEST_BATCH, math.ceil(expected + 6 * math.sqrt(most * expected))))


def _measured(arm: Arm, model: PromptedModel, cache_dir: Path, on_progress: Progress | None) -> float:
    """Read what was measured before of this model and method on such a machine, or measure it."""
    plan = arm.plan.release_plan
    asked = (*model.how_asked, version_of("transformers")) if isinstance(model, GenerativeModel) else ()
    told = [
        model.backbone.fingerprint, model.class_names, model.memory_mb, to_plain(arm.method), plan.clip_norms,
        _largest_batch(arm), torch.__version__, model.device, torch.backends.cpu.get_cpu_capability(),
        torch.cuda.get_device_name() if torch.cuda.is_initialized() else "", torch.get_num_threads(), PASSES, *asked,
    ]  # fmt: skip
    key = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()
    path = cache_dir / "rounding" / f"{key[:24]}.json"
    with contextlib.suppress(DataError, KeyError, TypeError, ValueError):  # missing, or damaged: measured again
        return float(records.read_json(path)["moved"])
    moved = measure(arm, model, on_progress)
    files.write_text(path, records.json_text({"moved": moved, "of": told[1:]}))
    with contextlib.suppress(OSError):  # another process may be at it
        for old in sorted(path.parent.glob("*.json"), key=lambda each: each.stat().st_mtime)[:-MOST_KEPT]:
            old.unlink()
    return moved
