"""Clients who go through the text tower together, against the same clients one by one: `runtime.stack_mb`.

One thread; both take turns in one process. On a CPU a large tower's products are large already, so what there is to
gain are the calls of small batches: clients of the embedded model who share a context become one batch. Ten clients
with contexts of their own are what `gpu` measures where there is a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.clip_step import CLASS_NAMES, NUM_CTX, loaded, random_network
from benchmarks.measure import measured
from benchmarks.rows import Row
from hushprompt.config import parse as configs
from hushprompt.methods.base import Batch
from hushprompt.models.placing import step_memory_mb
from hushprompt.privacy.clipping import clipped_sum
from hushprompt.prompts.gradients import per_example_gradients
from hushprompt.prompts.optimizer import Optimizer
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.prompts.stack import run_stacked

TITLE = "Stacked clients, forward and per-example gradients, a client's share, one thread"
NUM_CLIENTS = 10
CLIP_CLIENTS, CLIP_EXAMPLES = 4, 2
LEARNING_RATE = Optimizer().learning_rate

Step = Callable[[PromptModel], Tensor]


def rows(*, is_short: bool) -> list[Row]:
    """Measure all."""
    preset = configs.load(configs.locate(None))
    embedded = PromptModel(preset.backbone.load(), preset.data.load().class_names, memory_mb=step_memory_mb(0, "cpu"))
    found = []
    for num_examples in (1, 4, 20):
        steps = steps_of(embedded, NUM_CLIENTS, num_examples, is_shared=True)
        noun = "example" if num_examples == 1 else "examples"
        name = f"embedded model, {NUM_CLIENTS} clients who share a context, {num_examples} {noun} each"
        found += compared(name, embedded, steps, repeats=3 if is_short else 15)
    if not is_short:
        clip = PromptModel(loaded(random_network()), CLASS_NAMES, memory_mb=step_memory_mb(0, "cpu"))
        steps = steps_of(clip, CLIP_CLIENTS, CLIP_EXAMPLES, is_shared=False)
        name = f"CLIP ViT-B/16, {CLIP_CLIENTS} clients with contexts of their own, {CLIP_EXAMPLES} examples each"
        found += compared(name, clip, steps, repeats=3)
    return found


def compared(name: str, model: PromptModel, steps: Sequence[Step], repeats: int) -> list[Row]:
    """Time steps one by one and stacked, and compare what they give."""

    def alone() -> list[Tensor]:
        return [step(model) for step in steps]

    def together() -> list[Tensor]:
        return run_stacked(model, steps, step_memory_mb(0, "cpu") // len(steps))

    difference = max(
        float((ours - theirs).norm() / theirs.norm()) for ours, theirs in zip(together(), alone(), strict=True)
    )
    seconds = [(measured(together)[1].seconds, measured(alone)[1].seconds) for _ in range(repeats)]
    ours, reference = (1e3 * median(each) / len(steps) for each in zip(*seconds, strict=True))
    return [
        Row(name=name, figure="speedup", unit="ms", ours=ours, reference=reference, note=f"medians of {repeats}"),
        Row(
            name=f"relative difference of their contexts after a clipped step (learning rate {LEARNING_RATE:g})",
            figure="amount", unit="", ours=difference, target=1e-6,
        ),
    ]  # fmt: skip


def steps_of(model: PromptModel, num_clients: int, num_examples: int, *, is_shared: bool) -> list[Step]:
    """Give what the clients do: random examples, and random contexts or one."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(model.device)

    contexts = 0.02 * draw(1 if is_shared else num_clients, NUM_CTX, model.token_width)
    num_alike = float(num_clients * num_examples) if is_shared else 0.0
    steps: list[Step] = []
    for context in contexts.expand(num_clients, -1, -1):
        features = F.normalize(draw(num_examples, model.backbone.feature_dim), dim=-1)
        labels = torch.randint(model.num_classes, (num_examples,), generator=generator).to(model.device)
        steps.append(functools.partial(step, context, Batch(features, labels, num_alike)))
    return steps


def step(context: Tensor, batch: Batch, model: PromptModel) -> Tensor:
    """Give the context after a clipped step without noise."""
    grads, _ = per_example_gradients(model, context, batch)
    return context - LEARNING_RATE * clipped_sum(grads, 1.0).value / len(grads)
