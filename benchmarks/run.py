"""The benchmark of the fast path: `python benchmarks/run.py [--short] [--out FILE.json]`.

One thread, about 6 CPU minutes, short 2. Ours and the reference take turns in one process. Seconds are the process's
own CPU time, the least of the passes, so that other programs on the machine matter little. docs/fast-path.md explains
the rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import clip_step
from hushprompt.config import RuntimeConfig
from measure import Cost, best, count_gflop, gemm_peak, machine, measured, write_json


@dataclass(frozen=True)
class Row:
    """One line of the result."""

    name: str
    ours: Cost
    reference: Cost
    ours_gflop: float
    reference_gflop: float
    target: float
    """Least speedup wanted."""
    relative_difference: float
    note: str = ""

    @property
    def speedup(self) -> float:
        """Seconds of the reference over ours."""
        return self.reference.seconds / self.ours.seconds

    def to_plain(self, peak: float) -> dict[str, Any]:
        """Give what the JSON file says, with the time that the arithmetic would take at the machine's peak."""
        return {
            **dataclasses.asdict(self),
            "speedup": self.speedup,
            "ours_over_reference": 1 / self.speedup,
            "is_target_met": self.speedup >= self.target,
            "ours_seconds_at_peak": self.ours_gflop / peak,
            "ours_share_of_peak": self.ours_gflop / peak / self.ours.seconds,
            "reference_share_of_peak": self.reference_gflop / peak / self.reference.seconds,
        }


class Bench:
    """Runs pieces of work in turn and keeps what each one cost and gave."""

    def __init__(self) -> None:
        """Start empty."""
        self.costs: dict[str, list[Cost]] = {}
        self.results: dict[str, Tensor] = {}
        self.gflop: dict[str, float] = {}

    def run(self, name: str, work: Callable[[], Tensor], *, with_gflop: bool = False) -> None:
        """Run once; with FLOPs counted on the way where that costs nothing beside the work."""
        kept: list[Tensor] = []
        if with_gflop and name not in self.gflop:
            _, cost = measured(lambda: self.gflop.update({name: count_gflop(lambda: kept.append(work()))}))
        else:
            _, cost = measured(lambda: kept.append(work()))
        self.costs.setdefault(name, []).append(cost)
        self.results[name] = kept[0]

    def count(self, name: str, work: Callable[[], Tensor]) -> None:
        """Count FLOPs in a run of its own, which also warms up."""
        self.gflop[name] = count_gflop(work)

    def best(self, *names: str) -> Cost:
        """Give the least cost of one piece, or of several after one another."""
        pieces = [best(self.costs[name]) for name in names]
        return Cost(sum(cost.seconds for cost in pieces), max(cost.peak_mb for cost in pieces))


def relative(ours: Tensor, reference: Tensor) -> float:
    """Give the norm of the difference over the norm of the reference."""
    return float((ours - reference).norm() / reference.norm())


def run(*, is_short: bool, memory_mb: int) -> tuple[list[Row], float]:
    """Measure all rows; give them and the machine's GEMM peak."""
    ours, plain, inputs = clip_step.build(memory_mb)
    num_eval = -(-clip_step.NUM_TEST // clip_step.EVAL_BATCH)
    num_run = 1 if is_short else num_eval
    peak = gemm_peak()
    bench = Bench()
    features = inputs.train_features[inputs.batch_index]
    for name, work in (
        ("text", lambda: ours.text_gradient(inputs, features)),
        ("step", lambda: ours.step(inputs)),
        ("evaluate", lambda: ours.evaluate(inputs)),
    ):
        bench.count(name, work)
    for _ in range(1 if is_short else 2):
        for _ in range(3):
            bench.run("text", lambda: ours.text_gradient(inputs, features))
            bench.run("step", lambda: ours.step(inputs))
            bench.run("evaluate", lambda: ours.evaluate(inputs))
        bench.run("plain text", lambda: plain.text_gradient(inputs, features), with_gflop=True)
        bench.run("plain image", lambda: plain.encode(inputs), with_gflop=True)
        bench.run("per example", lambda: ours.per_example(inputs), with_gflop=True)
    bench.run("plain evaluate", lambda: plain.evaluate(inputs, num_run), with_gflop=True)
    peak = max(peak, gemm_peak())
    per_example = relative(bench.results["per example"].mean(dim=0), bench.results["plain text"])
    if not is_short:  # one example by the plain form costs a whole step of it
        alone = plain.text_gradient(inputs, features[:1])
        per_example = max(per_example, relative(bench.results["per example"][0], alone))
    return _rows(bench, per_example, num_eval / num_run), peak


def _rows(bench: Bench, per_example: float, scale: float) -> list[Row]:
    """Put the pieces together."""
    gradient = relative(bench.results["text"], bench.results["plain text"])
    stepped = bench.results["step"][1]
    plain_logits = bench.results["plain evaluate"]
    evaluated = relative(bench.results["evaluate"][: len(plain_logits)], plain_logits)
    gflop = bench.gflop
    image_and_text = gflop["plain image"] + gflop["plain text"]
    plain_evaluate = bench.best("plain evaluate")
    return [
        Row(
            "a. text forward and backward", bench.best("text"), bench.best("plain text"),
            gflop["text"], gflop["plain text"], 25, gradient,
        ),
        Row(
            "b. whole step", bench.best("step"), bench.best("plain image", "plain text"),
            gflop["step"], image_and_text, 45, relative(stepped, bench.results["plain text"]),
            "cached features against 32 images encoded anew",
        ),
        Row(
            "c. 32 per-example gradients, against one plain step", bench.best("per example"),
            bench.best("plain image", "plain text"), gflop["per example"], image_and_text, 2, per_example,
        ),
        Row(
            "c. the same, against its text part", bench.best("per example"), bench.best("plain text"),
            gflop["per example"], gflop["plain text"], 2, per_example,
        ),
        Row(
            "d. evaluation on 2,465 images", bench.best("evaluate"),
            Cost(plain_evaluate.seconds * scale, plain_evaluate.peak_mb), gflop["evaluate"],
            gflop["plain evaluate"] * scale, 25, evaluated,
            "" if scale == 1 else f"reference: one batch of 100 images was run, times {scale:g}",
        ),
    ]  # fmt: skip


def table(rows: list[Row], peak: float) -> Table:
    """Draw the result."""
    result = Table(title=f"CPU seconds, one thread; GEMM peak {peak:.0f} GFLOP/s")
    headers = ("", "ours s", "reference s", "speedup", "target", "ours MB", "reference MB", "of peak", "difference")
    for index, header in enumerate(headers):
        result.add_column(header, justify="left" if index == 0 else "right")
    for row in rows:
        plain = row.to_plain(peak)
        result.add_row(
            row.name, f"{row.ours.seconds:.2f}", f"{row.reference.seconds:.1f}", f"{row.speedup:.4g}x",
            f"{row.target:g}x" + ("" if plain["is_target_met"] else " missed"), f"{row.ours.peak_mb:.0f}",
            f"{row.reference.peak_mb:.0f}", f"{plain['ours_share_of_peak']:.0%}", f"{row.relative_difference:.1e}",
        )  # fmt: skip
    return result


def main() -> None:
    """Measure, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one pass, one batch of the reference's evaluation")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--memory-mb", type=int, default=RuntimeConfig().memory_mb, help="runtime.memory_mb")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, peak = run(is_short=arguments.short, memory_mb=arguments.memory_mb)
    Console(width=130).print(table(rows, peak))
    if arguments.out:
        values = {
            "machine": {**machine(), "gemm_gflop_per_second": peak},
            "setting": {
                "architecture": clip_step.ARCHITECTURE, "num_classes": len(clip_step.CLASS_NAMES),
                "num_ctx": clip_step.NUM_CTX, "batch": clip_step.BATCH, "dtype": "float32",
                "memory_mb": arguments.memory_mb, "is_short": arguments.short,
            },
            "rows": [row.to_plain(peak) for row in rows],
        }  # fmt: skip
        write_json(arguments.out, values)


if __name__ == "__main__":
    main()
