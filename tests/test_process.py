import resource
import sys

import numpy as np
import pytest

from hushprompt import process


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone can be told")
def test_memory_that_was_freed_is_there_again():
    process.keep_freed_memory()

    def fill():
        return np.ones(2**20).sum()  # 8 MB

    fill()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        fill()
    pages = 8 * 2**20 // resource.getpagesize()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < pages


def test_a_thread_that_computes_waits_little_for_the_interpreter(monkeypatch):
    before, kept = sys.getswitchinterval(), []
    monkeypatch.setattr(process, "keep_freed_memory", lambda: kept.append(True))
    try:
        process.tune()
        assert sys.getswitchinterval() <= 1e-3
        assert kept
    finally:
        sys.setswitchinterval(before)
