"""DP-FPL on a GPU, CLIP ViT-B/16 with Caltech101's shapes: whole rounds of the simulator, and the step alone.

Random weights, 100 classes, 16 context vectors, image features random and cached. A round is the simulator's own: 10
clients of 251 examples take one step each on about 32 of them, with exact per-example gradients, clipping and noise;
every client's prompt is then scored on 2,465 images, and ledger, record and checkpoint are written. Seconds are wall
time, the first round left out. The step alone is timed as it is, and with the tower's kernels started one by one.
Without a GPU the same code takes one small round on the CPU, which gives no figure.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.clip_step import BATCH, CLASS_NAMES, NUM_TEST, loaded, random_inputs, random_network
from benchmarks.federations import Silent, fresh_start, random_federation
from benchmarks.measure import count_gflop, in_process
from benchmarks.rows import Row
from hushprompt.config import parse as configs
from hushprompt.federation.planning import plan_arms
from hushprompt.federation.setup import client_sizes
from hushprompt.federation.simulate import Trainer
from hushprompt.models.placing import Device, Precision, place, step_memory_mb
from hushprompt.prompts.gradients import per_example_gradients
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.runs.checkpoint import Checkpoints

TITLE = "GPU: 100 rounds of 10 clients, about 32 examples each, features cached"
WANTED_SECONDS = 60.0
NUM_ROUNDS, NUM_CLIENTS, NUM_EXAMPLES = 100, 10, 251
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float16")


def rows(*, is_short: bool) -> list[Row]:
    """Measure every precision of the towers, or say why not."""
    if torch.cuda.is_available():
        num_rounds = 10 if is_short else NUM_ROUNDS
        return [row for precision in PRECISIONS for row in in_process(measured, precision, num_rounds)]
    note = "torch sees no GPU; results/benchmarks/gpu.json has the figures of one"
    if not is_short:
        train(clip("cpu", "float32"), num_rounds=1, num_clients=1, num_examples=20)
        note += "; one round of one client with some examples ran on the CPU by the same code"
    name = f"wall time of {NUM_ROUNDS} rounds of {NUM_CLIENTS} clients"
    return [Row(name=name, figure="amount", ours=None, target=WANTED_SECONDS, note=note)]


def measured(precision: Precision, num_rounds: int) -> list[Row]:
    """Measure one precision on the GPU."""
    model = clip("cuda", precision)
    step = Step(model)
    gflop, rate = count_gflop(step.one_by_one), matrix_rate(precision)
    ours, plain = milliseconds(step.as_it_is), milliseconds(step.one_by_one)
    ends = train(model, num_rounds=num_rounds + 1, num_clients=NUM_CLIENTS, num_examples=NUM_EXAMPLES)
    seconds = (ends[-1] - ends[0]) * NUM_ROUNDS / num_rounds
    per_step = f"{precision}, forward and {BATCH} per-example gradients"
    return [
        Row(
            name=f"{precision}, wall time of the rounds", figure="amount", ours=seconds, target=WANTED_SECONDS,
            ours_mb=torch.cuda.max_memory_allocated() / 2**20,
            note=f"{torch.cuda.get_device_name()}; {num_rounds} rounds ran; memory is the GPU's",
        ),
        Row(
            name=f"{per_step}, against kernels started one by one", figure="speedup", unit="ms", ours=ours,
            reference=plain,
            note=f"{gflop:.0f} GFLOP, {gflop / rate / ours * 1e3:.1%} of the {rate:,.0f} GFLOP/s of large matrix "
            f"products in {precision}",
        ),
    ]  # fmt: skip


def clip(device: Device, precision: Precision) -> PromptModel:
    """Make a random network, as a user's checkpoint."""
    backbone = loaded(random_network(), precision)
    device_name = place(backbone, device)
    return PromptModel(backbone, CLASS_NAMES, device=device_name, memory_mb=step_memory_mb(0, device_name))


def train(model: PromptModel, *, num_rounds: int, num_clients: int, num_examples: int) -> list[float]:
    """Train by the simulator with the settings of configs/caltech101.toml; give when each round was over."""
    overrides = [
        "references=[]", "privacy.delta=1e-5", 'backbone={name="toy"}', f"training.num_rounds={num_rounds}",
        f"sampling.sampling_prob={BATCH / NUM_EXAMPLES}", f"partition.num_clients={num_clients}",
    ]  # fmt: skip
    config = configs.load(Path(__file__).parent.parent / "configs" / "caltech101.toml", overrides)
    ends = []

    class Watch(Silent):
        def on_round(self, record: Any) -> None:
            ends.append(time.perf_counter())

    with (
        tempfile.TemporaryDirectory() as name,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
        ThreadPoolExecutor(1) as disk,
    ):
        folder, progress = Path(name), fresh_start()
        federation = random_federation(
            model, folder, num_clients=num_clients, num_examples=num_examples, num_test=NUM_TEST
        )
        (arm,) = plan_arms(config, client_sizes(federation.partition), federation.declared)
        checkpoints = Checkpoints(folder, progress)
        state, _, _ = Trainer(config, federation, folder, pool, disk, Watch(), checkpoints).train(arm, progress)
    assert bool(state.shared.context.isfinite().all())
    return ends


class Step:
    """Forward and per-example gradients of one client."""

    def __init__(self, model: PromptModel) -> None:
        """Draw features and a context."""
        inputs = random_inputs()
        self._context = inputs.context.to(model.device)
        self._features = inputs.train_features[inputs.batch_index].to(model.device)
        self._labels = inputs.labels.to(model.device)
        self._model = model
        self._plain = PromptModel(
            model.backbone, CLASS_NAMES, device=model.device, memory_mb=model.memory_mb, records=False
        )

    def as_it_is(self) -> None:
        """Take it."""
        per_example_gradients(self._model, self._context, self._features, self._labels)

    def one_by_one(self) -> None:
        """Take it without recordings."""
        per_example_gradients(self._plain, self._context, self._features, self._labels)


def milliseconds(work: Callable[[], object], repeats: int = 20) -> float:
    """Return the median wall time, the GPU's work included."""
    for _ in range(3):
        work()
    seconds = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 1e3 * median(seconds)


def matrix_rate(precision: Precision, size: int = 8192) -> float:
    """Measure GFLOP/s of large matrix products."""
    left, right = (torch.randn(size, size, device="cuda").to(getattr(torch, precision)) for _ in range(2))
    return 2 * size**3 / milliseconds(lambda: left @ right) / 1e6
