"""The benchmarks of the simulator still run, at a size where they say nothing."""

import dataclasses
import importlib
import sys
from pathlib import Path

import pytest

from hushprompt.federation.setup import assemble, cut, load_model
from hushprompt.privacy.sampling import DisjointSampler

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the benchmarks read /proc")


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    return importlib.import_module


def test_a_case_of_the_scale_benchmark_runs(benchmark):
    scale = benchmark("scale")
    case = scale.Case(name="clients", num_clients=30, cohort_size=3, num_rounds=4, num_test=60)
    result = scale.measure(case)
    assert result.num_examples == 3000
    assert result.seconds_per_round > 0
    assert 0.2 < result.checkpoint_mb_per_round < 1.0, "about 100 kB for each client of the cohort"
    assert "3,000" in str(list(scale.table([result]).columns[3].cells))


def test_the_overhead_of_a_small_federation_is_a_share(benchmark, toy_config, tmp_path):
    pytest.importorskip("open_clip")
    overhead = benchmark("overhead")
    config = dataclasses.replace(toy_config, sampling=DisjointSampler(steps_per_round=1))  # noise set in no time
    dataset = config.data.load()
    federation = assemble(config, load_model(config, dataset, []), dataset, cut(config, dataset), lambda *_: None)
    row = overhead.measure("toy", config, federation, 2, 0.3)
    assert 0 < row.overhead < 1
    assert row.to_plain()["num_clients"] == 3
