"""How the benchmarks measure: own CPU seconds, peak memory, FLOPs, and what the machine could do."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """What one run of something took."""

    seconds: float
    """CPU time of this process."""
    peak_mb: float
    """Largest resident memory of the process while it ran, model and libraries included."""


def measured(work: Callable[[], Any]) -> tuple[Any, Cost]:
    """Run something once."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    start = time.process_time()
    result = work()
    return result, Cost(time.process_time() - start, _peak_mb())


def best(costs: list[Cost]) -> Cost:
    """Give the least time of several passes, and the most memory."""
    return Cost(min(cost.seconds for cost in costs), max(cost.peak_mb for cost in costs))


def fused_attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Count the two products of torch's fused attention on the CPU, which its own counter leaves out."""
    *batch, rows, width = query
    return 4 * math.prod(batch) * rows * key[-2] * width


def fused_attention_backward_flops(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Count its five products backward: the scores are computed again."""
    return fused_attention_flops(query, key, value) * 5 // 2


FUSED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: fused_attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: fused_attention_backward_flops,
}


def count_gflop(work: Callable[[], Any]) -> float:
    """Run something once and count the floating-point operations of its matrix products and convolutions."""
    counter = FlopCounterMode(display=False, custom_mapping=FUSED)
    with counter:
        work()
    return counter.get_total_flops() / 1e9


def gemm_peak(passes: int = 12) -> float:
    """Measure GFLOP/s of large float32 matrix products of shapes like a text tower's, one thread."""
    a, b = torch.randn(2048, 512), torch.randn(512, 2048)
    repeats, fastest = 8, math.inf
    for _ in range(passes):
        start = time.process_time()
        for _ in range(repeats):
            a @ b
        fastest = min(fastest, time.process_time() - start)
    return repeats * 2 * a.shape[0] * a.shape[1] * b.shape[1] / fastest / 1e9


def machine() -> dict[str, str | int]:
    """Describe where the figures come from."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            model = value.strip()
    return {
        "cpu": model,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def write_json(path: Path, values: Any) -> None:
    """Write a result, in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _peak_mb() -> float:
    """Read the high-water mark of resident memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM; this benchmark needs Linux.")
