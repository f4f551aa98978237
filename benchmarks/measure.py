"""How the benchmarks measure: own CPU seconds, peak memory, FLOPs, and what the machine could do."""

from __future__ import annotations

import math
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

Result = TypeVar("Result")


def in_process(work: Callable[..., Result], *args: Any) -> Result:
    """Run something in a process of its own, on one thread, so that its peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare) as pool:
        return pool.submit(work, *args).result()


def _prepare() -> None:
    """Make a new process ready."""
    torch.set_num_threads(1)


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
    return result, Cost(time.process_time() - start, peak_mb())


def fused_attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Count the two products of torch's fused attention on the CPU, which its own counter leaves out."""
    *batch, rows, width = query
    count: int = 4 * math.prod(batch) * rows * key[-2] * width
    return count


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


def machine() -> dict[str, str | int | float]:
    """Describe where the figures come from; names of no machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "cpu": _field("/proc/cpuinfo", "model name", "unknown"),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 1e9, 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **gpu,
    }


def peak_mb() -> float:
    """Read the high-water mark of resident memory of this process."""
    return int(_field("/proc/self/status", "VmHWM").split()[0]) / 1024


def resident_mb() -> float:
    """Read the resident memory of this process."""
    return int(_field("/proc/self/status", "VmRSS").split()[0]) / 1024


def _field(path: str, name: str, default: str | None = None) -> str:
    """Return a line of a file in /proc by its name."""
    for line in Path(path).read_text().splitlines():
        found, _, value = line.partition(":")
        if found.strip() == name:
            return value.strip()
    if default is None:
        raise RuntimeError(f"{path} has no {name}; the benchmarks need Linux.")
    return default
