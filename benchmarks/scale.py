"""Many clients on one machine: what a round of DP-FPL costs through the real loop, with checkpoints and accounting.

Clients have 100 cached examples each, of which a step draws 5 (Poisson). In most cases features [n, 512] and contexts
[16, 512] have CLIP ViT-B/16's shapes and the text tower is the toy one with 4 classes, so that what is seen is the
simulator; one case has the embedded model with its 100 classes. Two workers. Every case runs in a process of its own.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.federations import Silent, fresh_start, random_federation
from benchmarks.measure import in_process, measured
from benchmarks.rows import Row
from hushprompt.config import parse as configs
from hushprompt.data.sets.toy import NAMES
from hushprompt.federation.planning import plan_arms
from hushprompt.federation.setup import Federation, client_sizes
from hushprompt.federation.simulate import Trainer
from hushprompt.models.toy import Toy
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.runs.checkpoint import Checkpoints

TITLE = "Scale: clients of 100 cached examples, random features, two workers"
EXAMPLES_OF_A_CLIENT, WIDTH = 100, 512
GROWTH = 1.25
"""What may be said not to grow: a round's cost differs by about so much from run to run."""
MEMORY_MB = 4000


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    num_clients: int
    cohort_size: int
    num_rounds: int
    tower: Literal["toy", "embedded"] = "toy"
    num_test: int = 100
    """Images of the one evaluation, after the last round."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What it took."""

    round_seconds: float
    """CPU time of a round without evaluation, first round left out: median."""
    round_wall: float
    """Wall time of the same."""
    checkpoint_mb: float
    """Written to the checkpoint folder, a round."""
    evaluation_seconds: float
    """CPU time of the one evaluation."""
    peak_mb: float = 0.0


def rows(*, is_short: bool) -> list[Row]:
    """Measure all."""
    num_rounds = 3 if is_short else 7
    many = 1_000 if is_short else 10_000

    def cost(num_clients: int, cohort_size: int, **kwargs: Any) -> Cost:
        case = Case(num_clients=num_clients, cohort_size=cohort_size, **{"num_rounds": num_rounds, **kwargs})
        return in_process(measure, case)

    few, middle, large = cost(100, 100), cost(1_000, 100), cost(1_000, 200)
    most = middle if is_short else cost(many, 100)
    real = cost(1_000, 100, tower="embedded", num_rounds=3 if is_short else 4)
    found = [
        Row(
            name="round of 1,000 clients, cohort 100, embedded model: peak memory", figure="amount", unit="MB",
            ours=real.peak_mb, target=MEMORY_MB, ours_mb=real.peak_mb,
            note=f"{real.round_wall:.1f} s wall and {real.round_seconds:.1f} s CPU a round",
        ),
        Row(
            name=f"round of {many:,} clients against one of 100, cohort 100", figure="ratio", target=GROWTH,
            ours=most.round_seconds, reference=few.round_seconds, ours_mb=most.peak_mb, reference_mb=few.peak_mb,
            note=f"{many * EXAMPLES_OF_A_CLIENT:,} examples, memory-mapped, against 10,000; "
            f"{most.checkpoint_mb:.1f} and {few.checkpoint_mb:.1f} MB of checkpoint a round",
        ),
        Row(
            name=f"{many * EXAMPLES_OF_A_CLIENT:,} examples: peak memory", figure="amount", unit="MB",
            ours=most.peak_mb, target=MEMORY_MB, ours_mb=most.peak_mb,
        ),
        Row(
            name="a client's share of a round, cohort 200 against 100, of 1,000 clients", figure="ratio", target=GROWTH,
            ours=large.round_seconds / 200, reference=middle.round_seconds / 100,
            ours_mb=large.peak_mb, reference_mb=middle.peak_mb,
            note="1 is a cost that grows with the cohort alone, below 1 it grows more slowly",
        ),
    ]  # fmt: skip
    if is_short:
        return found
    scored = cost(1_000, 100, num_rounds=1, num_test=10_000)
    name = "evaluation of 1,000 clients, 100 of them moved, on 10,000 images"
    return [*found, Row(name=name, figure="amount", ours=scored.evaluation_seconds, ours_mb=scored.peak_mb)]


def measure(case: Case) -> Cost:
    """Train and score once."""
    if case.tower == "toy":
        model = PromptModel(Toy(token_width=WIDTH, feature_dim=WIDTH).load(), NAMES[:4], memory_mb=160)
    else:
        preset = configs.load(configs.locate(None))
        model = PromptModel(preset.backbone.load(), preset.data.load().class_names, memory_mb=160)
    one_thread = {"initializer": torch.set_num_threads, "initargs": (1,)}
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2, **one_thread) as pool:
        folder = Path(name)
        federation = random_federation(
            model, folder, num_clients=case.num_clients, num_examples=EXAMPLES_OF_A_CLIENT, num_test=case.num_test
        )
        found, own = measured(lambda: train(case, federation, folder, pool))
    return dataclasses.replace(found, peak_mb=own.peak_mb)


def train(case: Case, federation: Federation, folder: Path, pool: ThreadPoolExecutor) -> Cost:
    """Run the rounds of a case."""
    config = configs.parse(
        {
            "backbone": {"name": "toy"}, "data": {"name": "toy"}, "partition": {"name": "iid"},
            "sampling": {"name": "poisson", "sampling_prob": 0.05},
            "method": {"name": "dp_fpl"},
            "privacy": {"epsilon": "none", "noise_multiplier_local": 1.0, "noise_multiplier_global": 1.0},
            "training": {"num_rounds": case.num_rounds, "cohort_size": case.cohort_size},
            "evaluation": {"every": case.num_rounds},
        }
    )  # fmt: skip
    (arm,) = plan_arms(config, client_sizes(federation.partition), federation.declared)
    ticks, written = [], []

    class Watch(Silent):
        def on_round(self, record: Any) -> None:
            ticks.append((time.process_time(), time.perf_counter()))
            known = max(written, default=(0.0, 0))[0]
            new = [path.stat() for path in (folder / "checkpoint").iterdir()]
            written.append((time.time(), sum(each.st_size for each in new if each.st_mtime >= known)))

    progress = fresh_start()
    trainer = Trainer(config, federation, folder, pool, pool, Watch(), Checkpoints(folder, progress))
    state, *_ = trainer.train(arm, progress)
    rounds = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(ticks[:-1])]
    start = time.process_time()
    trainer.evaluate(arm, state)
    evaluation = time.process_time() - start
    return Cost(
        round_seconds=statistics.median(cpu for cpu, _ in rounds) if rounds else float("nan"),
        round_wall=statistics.median(wall for _, wall in rounds) if rounds else float("nan"),
        checkpoint_mb=statistics.mean(size for _, size in written) / 1e6,
        evaluation_seconds=evaluation,
    )
