"""Example steps of generative models, against whole sequences in the library's own forward pass and a loop over names.

Random weights, 64 cached media tokens, 16 context vectors, answers of four tokens. Ours and the reference take turns in
one process, on one thread; seconds are of one example, the least of the passes. Memory is measured apart, each case in
a process of its own. With a GPU, also steps at the shapes of SmolVLM-256M and Qwen2-VL-2B in bfloat16.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu import matrix_rate, milliseconds
from benchmarks.measure import count_gflop, gemm_peak, in_process, measured, resident_mb
from benchmarks.mllm_forms import NUM_EXAMPLES, QWEN2_VL_2B, SMOLLM2_135M, SMOLLM2_360M, Ours, Plain, Shape
from benchmarks.rows import Arithmetic, Row
from benchmarks.step import Bench, relative
from hushprompt.models.generative import Loss, PromptPosition
from hushprompt.models.placing import step_memory_mb
from hushprompt.prompts.generative_model import GenerativeModel

TITLE = "Generative models: one example's step, 64 media tokens, 16 context vectors, float32, one thread"
OVER_WHOLE, OVER_LOOP = 2.5, 10.0
"""How many times faster than whole sequences, with kept prefix, and than a loop over names."""
NUM_LOOPED = 5
"""Names of a loop that run; the others would take as long each."""


class Form(NamedTuple):
    """A way to take the step."""

    name: str
    position: PromptPosition
    keeps: bool

    def model(self, ours: Ours, loss: Loss, num_names: int = 20) -> GenerativeModel:
        """Return a model that takes it, with as much memory as on a CPU by default."""
        memory_mb = step_memory_mb(0, "cpu")
        return ours.model(loss, num_names, position=self.position, keeps=self.keeps, memory_mb=memory_mb)


FRONT, TAIL = Form("prompt at the front", "front", keeps=False), Form("tail, prefix read anew", "tail", keeps=False)
KEPT = Form("tail, kept prefix", "tail", keeps=True)
FORMS = (KEPT, TAIL, FRONT)
MEMORY: tuple[tuple[Shape, Form, Loss], ...] = (
    (SMOLLM2_135M, KEPT, "answer"), (SMOLLM2_135M, TAIL, "answer"), (SMOLLM2_135M, FRONT, "answer"),
    (SMOLLM2_135M, KEPT, "classes"), (SMOLLM2_360M, KEPT, "answer"),
)  # fmt: skip


def rows(*, is_short: bool) -> list[Row]:
    """Measure all."""
    shapes = (SMOLLM2_135M,) if is_short else (SMOLLM2_135M, SMOLLM2_360M)
    found = [row for shape in shapes for row in in_process(of_shape, shape, (20,) if is_short else (20, 100))]
    if not is_short:
        found += [in_process(memory, *case) for case in MEMORY]
    if torch.cuda.is_available():
        found += [row for shape in (SMOLLM2_135M, QWEN2_VL_2B) for row in in_process(on_gpu, shape)]
    return found


def of_shape(shape: Shape, numbers: tuple[int, ...]) -> list[Row]:
    """Measure one language model, with some numbers of names."""
    ours, bench = Ours(shape), Bench()
    plain, peak, works = Plain(ours.backbone), gemm_peak(), _answers(ours)
    works["whole"] = lambda: plain.gradients(ours.context, ours.batch(NUM_EXAMPLES))
    one = ours.batch(1)
    works["gradient"] = lambda: plain.looped_gradients(ours.context, one, NUM_LOOPED)
    works["scores"] = lambda: plain.looped_scores(ours.context, one, NUM_LOOPED)
    for num_names in (NUM_LOOPED, *numbers):
        works |= _classes(ours, num_names)
    for _ in range(2):
        for name, work in works.items():
            bench.run(name, work)
    for name in ("whole", *(form.name for form in FORMS)):
        bench.scale(name, 1 / NUM_EXAMPLES)

    def row(name: str, piece: str, against: str, target: float | None, factor: float = 1.0, note: str = "") -> Row:
        counts = Arithmetic(bench.gflop[piece], factor * bench.gflop[against], peak)
        return Row(
            name=f"{shape.name}, {name}", figure="speedup", ours=bench.seconds[piece], target=target, note=note,
            reference=factor * bench.seconds[against], arithmetic=counts,
        )  # fmt: skip

    answers = [
        row(f"answer, {form.name}, against whole sequences", form.name, "whole", OVER_WHOLE if form is KEPT else None)
        for form in FORMS
    ]
    classes = [
        row(
            f"{what} of {num} names packed, {form.name}, against a loop", f"{what} {num} {form.name}", what,
            OVER_LOOP if what == "gradient" else None, num / NUM_LOOPED,
            f"{NUM_LOOPED} names of the loop ran, times {num / NUM_LOOPED:g}",
        )
        for what in ("gradient", "scores") for num in numbers for form in FORMS
    ]  # fmt: skip
    return [*answers, *classes, *_differences(shape, bench)]


def _answers(ours: Ours) -> dict[str, Callable[[], Tensor]]:
    """Return the steps with the loss of the answer."""
    batch = ours.batch(NUM_EXAMPLES)
    models = {form.name: form.model(ours, "answer") for form in FORMS}
    return {
        name: lambda model=model: model.gradients(ours.context, batch)[0]  # type: ignore[misc]
        for name, model in models.items()
    }


def _classes(ours: Ours, num_names: int) -> dict[str, Callable[[], Tensor]]:
    """Return the steps with the loss over all names, and scores."""
    works: dict[str, Callable[[], Tensor]] = {}
    batch = ours.batch(1)
    for form in FORMS:
        model = form.model(ours, "classes", num_names)
        works[f"gradient {num_names} {form.name}"] = lambda model=model: model.gradients(ours.context, batch)[0]  # type: ignore[misc]
        works[f"scores {num_names} {form.name}"] = lambda model=model: model.scores(  # type: ignore[misc]
            ours.context, batch.image_features
        )
    return works


def _differences(shape: Shape, bench: Bench) -> list[Row]:
    """Return how far results at the tail are from those of the plain forms."""
    found, tails = bench.results, (KEPT, TAIL)
    answers = max(relative(found[form.name], found["whole"]) for form in tails)
    pairs = {"gradients of answers": answers} | {
        f"{what} of {NUM_LOOPED} names": max(
            relative(found[f"{what} {NUM_LOOPED} {f.name}"], found[what]) for f in tails
        )
        for what in ("gradient", "scores")
    }
    return [
        Row(name=f"{shape.name}, relative difference: {name}", figure="amount", ours=value, unit="", target=1e-5)
        for name, value in pairs.items()
    ]


def memory(shape: Shape, form: Form, loss: Loss) -> Row:
    """Measure what a step of 12 examples takes above weights, kept prefixes and one example's forward pass."""
    ours = Ours(shape)
    model, batch, limit = form.model(ours, loss), ours.batch(12), step_memory_mb(0, "cpu")
    copies = ours.context.expand(1, -1, -1).clone().requires_grad_()
    if form.keeps:
        model.scores(ours.context, batch.image_features)
    before = _trimmed_mb()
    _, cost = measured(lambda: model.losses(copies, batch.image_features[:1], batch.labels[:1]))
    forward, before = cost.peak_mb - before, _trimmed_mb()
    _, cost = measured(lambda: model.gradients(ours.context, batch))
    return Row(
        name=f"{shape.name}, {loss}, {form.name}: memory of a step of 12 examples above weights and one forward pass",
        figure="amount", unit="MB", ours=cost.peak_mb - before - forward, target=limit, ours_mb=cost.peak_mb,
        note=f"one example's forward pass takes {forward:.0f} MB",
    )  # fmt: skip


def _trimmed_mb() -> float:
    """Return the resident memory of this process after what is free has gone back to the system."""
    ctypes.CDLL(None).malloc_trim(0)
    return resident_mb()


def on_gpu(shape: Shape) -> list[Row]:
    """Measure steps in bfloat16."""
    ours, count, rate = Ours(shape, "cuda", torch.bfloat16), 32, matrix_rate("bfloat16")
    batch, found = ours.batch(count), []
    losses: tuple[Loss, ...] = ("answer", "classes")
    for loss in losses:
        model = ours.model(loss, keeps=True, memory_mb=step_memory_mb(0, "cuda"))

        def work(model: GenerativeModel = model) -> None:
            model.gradients(ours.context, batch)

        gflop = count_gflop(work)
        torch.cuda.reset_peak_memory_stats()
        found.append(Row(
            name=f"GPU, {shape.name}, wall time of {count} examples, {loss}, {KEPT.name}", figure="amount", unit="ms",
            ours=(took := milliseconds(work)), ours_mb=torch.cuda.max_memory_allocated() / 2**20,
            note=f"{torch.cuda.get_device_name()}, bfloat16, {gflop:.0f} GFLOP, {gflop / rate / took * 1e3:.1%} of the "
            f"{rate:,.0f} GFLOP/s of large matrix products; memory is the GPU's",
        ))  # fmt: skip
    return found
