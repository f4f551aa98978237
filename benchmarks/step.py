"""A client's step and evaluation with CLIP ViT-B/16, against the plain form by the library's own modules.

Ours and the reference take turns in one process, on one thread. Seconds are the least of the passes, so that other
programs on the machine matter little. Peak memory is measured apart, in processes that hold one of the two.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from benchmarks.clip_step import EVAL_BATCH, LONG_NAMES, NUM_TEST, Ours, Plain, loaded, random_inputs, random_network
from benchmarks.measure import count_gflop, gemm_peak, in_process, measured
from benchmarks.rows import Arithmetic, Figure, Row
from hushprompt.privacy.clipping import clipped_sum

TITLE = "Client step, CLIP ViT-B/16, 100 classes, 16 context vectors, float32, one thread"
EVALUATIONS_RUN = 2
"""Batches of the reference's evaluation that are run; the others would take as long each."""


class Bench:
    """Runs pieces of work in turn and keeps what each one took and gave."""

    def __init__(self) -> None:
        """Start empty."""
        self.seconds: dict[str, float] = {}
        self.results: dict[str, Tensor] = {}
        self.gflop: dict[str, float] = {}
        self.memory: dict[str, float] = {}

    def run(self, name: str, work: Callable[[], Tensor]) -> None:
        """Run once and keep the least time; the first time also counts FLOPs, which costs nothing beside the work."""
        kept: list[Tensor] = []
        if name in self.gflop:
            _, cost = measured(lambda: kept.append(work()))
        else:
            _, cost = measured(lambda: self.gflop.update({name: count_gflop(lambda: kept.append(work()))}))
        self.seconds[name] = min(cost.seconds, self.seconds.get(name, cost.seconds))
        self.results[name] = kept[0]

    def scale(self, name: str, factor: float) -> None:
        """Return the cost of a piece of which only a part has run."""
        self.seconds[name] *= factor
        self.gflop[name] *= factor


def rows(*, is_short: bool) -> list[Row]:
    """Measure all."""
    network, inputs = random_network(), random_inputs()
    backbone, plain = loaded(network), Plain(network)
    ours, with_long_names = Ours(backbone), Ours(backbone, LONG_NAMES)
    features = inputs.train_features[inputs.batch_index]
    peak = gemm_peak()
    bench = Bench()
    for _ in range(1 if is_short else 2):
        for _ in range(2 if is_short else 3):
            bench.run("text", lambda: ours.text_gradient(inputs, features))
            bench.run("step", lambda: ours.step(inputs))
            bench.run("evaluate", lambda: ours.evaluate(inputs))
        bench.run("plain text", lambda: plain.text_gradient(inputs, features))
        bench.run("plain image", lambda: plain.encode(inputs))
        bench.run("per example", lambda: ours.per_example(inputs))
        bench.run("per example, long names", lambda: with_long_names.per_example(inputs))
    num_run = 1 if is_short else EVALUATIONS_RUN
    bench.run("plain evaluate", lambda: plain.evaluate(inputs, num_run))
    peak = max(peak, gemm_peak())
    bench.results["one by one"] = ours.one_by_one(inputs, 2 if is_short else 8)
    del ours, with_long_names, backbone, plain, network
    if not is_short:
        bench.memory |= in_process(peaks_of_ours)
        memory, bench.results["plain alone"] = in_process(peaks_of_plain)
        bench.memory |= memory
    return [*_times(bench, peak, num_run), *_differences(bench)]


def _times(bench: Bench, peak: float, num_run: int) -> list[Row]:
    """Return what takes how long."""
    num_batches = -(-NUM_TEST // EVAL_BATCH)
    bench.scale("plain evaluate", num_batches / num_run)

    def row(name: str, piece: str, *against: str, figure: Figure = "speedup", target: float, note: str = "") -> Row:
        arithmetic = Arithmetic(bench.gflop[piece], sum(bench.gflop[each] for each in against), peak)
        memory = [bench.memory[each] for each in against if each in bench.memory]
        return Row(
            name=name, figure=figure, target=target, arithmetic=arithmetic, note=note,
            ours=bench.seconds[piece], reference=sum(bench.seconds[each] for each in against),
            ours_mb=bench.memory.get(piece),
            reference_mb=max(memory, default=None),
        )  # fmt: skip

    step = ("plain text", "plain image")
    flops = bench.gflop["per example"] / bench.gflop["plain text"]
    return [
        row(
            "text forward and backward", "text", "plain text", target=25,
            note="the reference is the plain form, 77 tokens and one sequence a class",
        ),
        row(
            "whole step with cached features", "step", *step, target=45,
            note="the reference encodes its 32 images and does the same in the plain form",
        ),
        row(
            "32 per-example gradients, against one plain step without them", "per example", *step,
            figure="ratio", target=0.5,
        ),
        row(
            "the same, against the text part of that step", "per example", "plain text", figure="ratio", target=0.5,
            note=f"stricter than the target; by FLOPs alone it would be {flops:.2f}x",
        ),
        row(
            "the same with names of five tokens, against one plain step", "per example, long names", *step,
            figure="ratio", target=0.8, note="the plain form takes the whole window whatever the names",
        ),
        row(
            f"evaluation on {NUM_TEST:,} images", "evaluate", "plain evaluate", target=25,
            note="text features once and one product, against text features for every batch of 100 cached images; "
            f"{num_run} of these {num_batches} batches ran, times {num_batches / num_run:g}",
        ),
    ]  # fmt: skip


def _differences(bench: Bench) -> list[Row]:
    """Return how far the results are from those of the plain form."""
    found, plain = bench.results, bench.results["plain text"]
    per_example = relative(found["per example"].mean(dim=0), plain)
    if "plain alone" in found:
        per_example = max(per_example, relative(found["per example"][0], found["plain alone"]))
    gradient = max(relative(found["text"], plain), relative(found["step"][1], plain))
    logits = found["plain evaluate"]
    whole, parts = found["per example"][: len(found["one by one"])], found["one by one"]
    context = random_inputs().context
    stepped = [context - clipped_sum(grads, 1.0).value / len(grads) for grads in (whole, parts)]
    return [
        Row(name=name, figure="amount", ours=value, unit="", target=target)
        for name, value, target in (
            ("relative difference of the gradient", gradient, 1e-5),
            ("of the per-example gradients: their mean, and in a full run one alone", per_example, 1e-5),
            ("of the logits in evaluation", relative(found["evaluate"][: len(logits)], logits), 1e-5),
            ("of per-example gradients in one part and one by one", relative(whole, parts), None),
            ("of a context after a clipped step by either", relative(*stepped), 1e-6),
        )
    ]


def peaks_of_ours() -> dict[str, float]:
    """Measure memory in a process that holds nothing else."""
    ours, inputs = Ours(loaded(random_network())), random_inputs()
    features = inputs.train_features[inputs.batch_index]
    works = {
        "text": lambda: ours.text_gradient(inputs, features),
        "step": lambda: ours.step(inputs),
        "evaluate": lambda: ours.evaluate(inputs),
        "per example": lambda: ours.per_example(inputs),
    }
    return {name: measured(work)[1].peak_mb for name, work in works.items()}


def peaks_of_plain() -> tuple[dict[str, float], Tensor]:
    """Measure memory in a process that holds nothing else; also give one example's gradient, which takes as much."""
    plain, inputs = Plain(random_network()), random_inputs()
    features = inputs.train_features[inputs.batch_index]
    images = measured(lambda: plain.encode(inputs))[1]
    gradient, text = measured(lambda: plain.text_gradient(inputs, features[:1]))
    return {"plain image": images.peak_mb, "plain text": text.peak_mb}, gradient


def relative(ours: Tensor, reference: Tensor) -> float:
    """Return the norm of the difference over the norm of the reference."""
    return float((ours - reference).norm() / reference.norm())
