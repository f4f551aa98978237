"""The sections in their order: one file each, with `TITLE` and `rows(is_short=...)`."""

from __future__ import annotations

import importlib
import time

from benchmarks.rows import Section

SECTIONS = ("step", "overhead", "scale", "sweeping", "calibration", "preset", "serving", "secagg", "mllm", "gpu")


def measure(name: str, is_short: bool) -> Section:
    """Measure a section; to be run in a process of its own."""
    start = time.perf_counter()
    module = importlib.import_module(f"benchmarks.{name}")
    rows = module.rows(is_short=is_short)
    return Section(module.TITLE, tuple(rows), time.perf_counter() - start)
