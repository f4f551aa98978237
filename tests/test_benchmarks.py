"""The benchmarks still run, at a size where they say nothing, and their tables say what was measured."""

import dataclasses
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hushprompt.federation.setup import assemble, load_model, make_partition
from hushprompt.privacy.sampling import DisjointSampler

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the benchmarks read /proc")
MACHINE = {
    "cpu": "abacus", "cpu_capability": "beads", "cores": 2, "memory_gb": 1.5, "torch": "2", "python": "3",
    "system": "x",
}  # fmt: skip


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent)
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def test_every_section_has_a_title_and_rows(benchmark):
    pytest.importorskip("open_clip")
    pytest.importorskip("transformers")
    for name in benchmark("sections").SECTIONS:
        assert benchmark(name).TITLE
        assert callable(benchmark(name).rows)


def test_a_cache_of_features_scores_as_a_loop_over_its_entries(benchmark):
    generator = torch.Generator().manual_seed(0)
    features, images, texts = (
        F.normalize(torch.randn(n, 5, generator=generator, dtype=torch.float64), dim=1) for n in (7, 4, 3)
    )
    labels = torch.tensor([0, 2, 2, 0, 2, 0, 0])  # nothing of class 1
    found = benchmark("ceilings").Cache(features, labels, texts, 20.0).logits(images, alpha=3.0, beta=5.5)
    for n, x in enumerate(images):
        for c, text in enumerate(texts):
            score = 20.0 * float(x @ text)
            for f, label in zip(features, labels, strict=True):
                score += 3.0 * float((-5.5 * (1 - x @ f)).exp()) * (int(label) == c)
            assert float(found[n, c]) == pytest.approx(score)


def test_a_case_of_the_scale_benchmark_runs(benchmark):
    scale = benchmark("scale")
    case = scale.Case(num_clients=30, cohort_size=3, num_rounds=4, num_test=60)
    cost = scale.measure(case)
    assert cost.round_seconds > 0
    assert 0.2 < cost.checkpoint_mb < 1.0, "about 100 kB for each client of the cohort"
    assert cost.peak_mb > 50


def test_the_overhead_of_a_small_federation_is_a_share(benchmark, toy_config):
    pytest.importorskip("open_clip")
    overhead = benchmark("overhead")
    config = dataclasses.replace(toy_config, sampling=DisjointSampler(steps_per_round=1))  # noise set in no time
    dataset = config.data.load()
    federation = assemble(
        config, load_model(config, dataset, []), dataset, make_partition(config, dataset), lambda *_: None
    )
    row = overhead.measure("toy", config, federation, 2, 0.3)
    assert 0 < row.value < 1
    assert row.name == "toy, 3 clients"


def test_steps_of_a_small_generative_model_are_those_of_whole_sequences_and_of_a_loop(benchmark, monkeypatch):
    pytest.importorskip("transformers")
    mllm, forms = benchmark("mllm"), benchmark("mllm_forms")
    monkeypatch.setattr(mllm, "gemm_peak", lambda: 1.0)
    shape = forms.Shape("small", forms.SmolVLM, forms._llama(24, 48, 2, 3))
    rows = mllm.of_shape(shape, (7,))
    compared, differences = rows[:9], rows[9:]
    assert all(row.figure == "speedup" and row.value > 0 and row.arithmetic.reference_gflop > 0 for row in compared)
    assert len(differences) == 3
    assert max(row.value for row in differences) < 1e-5
    row = mllm.memory(shape, mllm.KEPT, "answer")
    assert row.ours < row.target
    assert row.ours_mb > 50


def test_running_threads_of_children_are_counted(benchmark):
    sweeping = benchmark("sweeping")
    code = "import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code]) as child:
        found = [path for path in sweeping.children(os.getpid()) if path.name == str(child.pid)]
        assert sweeping.running_threads(found[0]) in (0, 1)
        child.kill()
    assert sweeping.running_threads(found[0]) == 0


def test_a_step_with_noise_shares_opens_and_is_measured_at_both_ends(benchmark):
    secagg = benchmark("secagg")
    for case in (secagg.Case(3, 64), secagg.Case(5, 64, num_lost=1, num_colluding=1)):
        rows = secagg.measure(case, 1)
        assert [row.unit for row in rows] == ["ms", "ms", "KiB"]
        assert all(row.ours > 0 and row.reference > 0 for row in rows)


def test_a_row_is_met_or_says_by_how_much_not(benchmark):
    rows = benchmark("rows")
    fast = rows.Row(name="fast", figure="speedup", ours=2.0, reference=60.0, target=25)
    slow = rows.Row(name="slow", figure="speedup", ours=2.0, reference=40.0, target=25)
    large = rows.Row(name="large", figure="amount", ours=5000.0, unit="MB", target=4000)
    share = rows.Row(name="share", figure="share", ours=0.03, reference=1.0, target=0.05)
    barely = rows.Row(name="barely", figure="ratio", ours=0.500001, reference=1.0, target=0.5)
    untried = rows.Row(name="untried", figure="amount", ours=None, target=60.0, note="no GPU")
    assert [row.shortfall for row in (fast, share, untried)] == [0, 0, None]
    assert slow.shortfall == pytest.approx(0.2)
    assert large.shortfall == pytest.approx(0.25)
    cells = [row.cells() for row in (fast, slow, large, share, barely, untried)]
    assert [cell[3:6] for cell in cells] == [
        ("30x", "≥ 25x", "met"),
        ("20x", "≥ 25x", "missed by 20.0%"),
        ("", "≤ 4,000 MB", "missed by 25.0%"),
        ("3.0%", "≤ 5.0%", "met"),
        ("0.5x", "≤ 0.5x", "missed by 0.1%"),
        ("", "≤ 60 s", "not measured"),
    ]


def test_a_result_is_read_back_and_fills_a_page(benchmark, tmp_path):
    rows = benchmark("rows")
    arithmetic = rows.Arithmetic(ours_gflop=45.0, reference_gflop=1200.0, peak=90.0)
    step = rows.Row(
        name="step", figure="speedup", ours=1.0, reference=40.0, target=25, arithmetic=arithmetic, note="a note"
    )
    untried = rows.Row(name="untried", figure="amount", ours=None, target=60.0)
    result = rows.Result(MACHINE, False, {"step": rows.Section("Steps", (step, untried), 90.0)})
    result.write(tmp_path / "new" / "figures.json")
    assert rows.Result.read(tmp_path / "new" / "figures.json") == result
    begin, others = rows.BEGIN.format("cpu"), f"{rows.BEGIN.format('gpu')}of others\n{rows.END}"
    page = rows.with_figures(f"{others}before\n{begin}old\n{rows.END}after\n", "cpu", result)
    assert page.startswith(f"{others}before\n{begin}abacus (beads), 2 cores, 1.5 GB")
    assert page.endswith(f"{rows.END}after\n")
    assert "old" not in page
    assert "| step | 1 s | 40 s | 40x | ≥ 25x | met |  |  |\n" in page
    assert "- step: a note.\n" in page
    assert "| step | 45.0 | 1200 | 1.00 | 0.50 at 90 GFLOP/s | 50% | 33% |\n" in page
    assert rows.with_figures(page, "cpu", result) == page
    with pytest.raises(ValueError, match="no line '<!-- benchmarks: other -->'"):
        rows.with_figures(page, "other", result)


def test_figures_of_another_machine_are_not_mixed(benchmark):
    rows = benchmark("rows")
    result = rows.Result(MACHINE, False, {})
    assert result.measured_on(rows.Result(MACHINE, False, {"x": None})) is result
    for other in (rows.Result({**MACHINE, "cores": 3}, False, {}), rows.Result(MACHINE, True, {})):
        with pytest.raises(ValueError, match="of another machine, torch or length"):
            result.measured_on(other)
