"""Many clients on one machine: `python benchmarks/scale.py [--short] [--out FILE.json]`.

Rounds of DP-FPL through the real loop, with checkpoints, records and accounting, over clients of 100 cached examples
each, of which a step draws 5 (Poisson). Features [n, 512] and contexts [16, 512] have CLIP ViT-B/16's shapes; the text
tower is the toy one with 4 classes, so that what is seen is the simulator. Every case runs in a process of its own, so
that its peak memory is its own.

- clients: 100, 1,000 and 10,000 with a cohort of 100 each: a round must not cost more with more clients. The last case
  has 1,000,000 examples, memory-mapped.
- cohort: 50, 100 and 200 of 1,000 clients: a round costs what its cohort costs.
- evaluation: 1,000 clients, of whom 200 have moved, on 10,000 test images.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console
from rich.table import Table

import hushprompt
from federations import Silent, random_federation
from hushprompt import config as configs
from hushprompt.backbones.prompts import PromptModel
from hushprompt.backbones.toy import Toy
from hushprompt.data.toy import NAMES
from hushprompt.federation.checkpoint import Checkpoints, Progress
from hushprompt.federation.setup import client_sizes, plan_rows
from hushprompt.federation.simulate import Trainer
from measure import machine, measured, write_json

EXAMPLES_OF_A_CLIENT, WIDTH = 100, 512


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    name: str
    num_clients: int
    cohort_size: int
    num_rounds: int
    num_test: int = 100
    """Images of the one evaluation, after the last round."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What it took."""

    case: Case
    num_examples: int
    setup_seconds: float
    """CPU time of plan and cohorts."""
    seconds_per_round: float
    """CPU time of a round without evaluation, first round left out: median."""
    wall_seconds_per_round: float
    """Wall time of the same, two workers: median."""
    checkpoint_mb_per_round: float
    """Bytes written to the checkpoint folder, a round."""
    evaluation_seconds: float
    """CPU time of the one evaluation."""
    peak_mb: float


def main() -> None:
    """Measure, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer rounds, and no case with 10,000 clients")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    results = []
    spawn = multiprocessing.get_context("spawn")
    for case in cases(is_short=arguments.short):
        with spawn.Pool(1) as process:
            results.append(process.apply(measure, (case,)))
    Console(width=110).print(table(results))
    if arguments.out:
        values = {
            "machine": machine(),
            "is_short": arguments.short,
            "rows": [dataclasses.asdict(result) for result in results],
        }
        write_json(arguments.out, values)


def cases(*, is_short: bool) -> list[Case]:
    """Give what is measured."""
    rounds = 4 if is_short else 20
    many = [100, 1_000] if is_short else [100, 1_000, 10_000]
    return [
        *(Case(name="clients", num_clients=count, cohort_size=100, num_rounds=rounds) for count in many),
        *(Case(name="cohort", num_clients=1_000, cohort_size=size, num_rounds=rounds) for size in (50, 200)),
        Case(name="evaluation", num_clients=1_000, cohort_size=100, num_rounds=2, num_test=10_000),
    ]


def measure(case: Case) -> Result:
    """Train and score once."""
    torch.set_num_threads(1)
    hushprompt.load_registries()
    model = PromptModel(Toy(token_width=WIDTH, feature_dim=WIDTH).load(), NAMES[:4], memory_mb=160)
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as pool:
        folder = Path(name)
        federation = random_federation(
            model, folder, num_clients=case.num_clients, num_examples=EXAMPLES_OF_A_CLIENT, num_test=case.num_test
        )
        (result, cost) = measured(lambda: train(case, federation, folder, pool))
        return dataclasses.replace(result, peak_mb=cost.peak_mb)


def train(case: Case, federation: Any, folder: Path, pool: ThreadPoolExecutor) -> Result:
    """Run the rounds of a case."""
    start = time.process_time()
    config = configs.parse(
        {
            "backbone": {"name": "toy"}, "data": {"name": "toy"}, "partition": {"name": "disjoint_classes"},
            "sampling": {"name": "poisson", "sampling_prob": 0.05},
            "method": {"name": "dp_fpl"},
            "privacy": {"epsilon": "none", "noise_multiplier_local": 1.0, "noise_multiplier_global": 1.0},
            "training": {"num_rounds": case.num_rounds, "cohort_size": case.cohort_size},
            "evaluation": {"every": case.num_rounds},
        }
    )  # fmt: skip
    (row,) = plan_rows(config, client_sizes(federation.partition))
    setup = time.process_time() - start
    ticks, written = [], []

    class Watch(Silent):
        def on_round(self, record: Any) -> None:
            ticks.append((time.process_time(), time.perf_counter()))
            known = max(written, default=(0.0, 0))[0]
            new = [path.stat() for path in (folder / "checkpoint").iterdir()]
            written.append((time.time(), sum(each.st_size for each in new if each.st_mtime >= known)))

    progress = Progress(
        config_identity="", row_index=0, num_rounds_done=0, row_seconds=0.0, records_size=0, finished_rows=[]
    )
    trainer = Trainer(config, federation, folder, pool, Watch(), Checkpoints(folder, progress))
    state, *_ = trainer.train(row, progress)
    rounds = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(ticks[:-1])]
    start = time.process_time()
    trainer.evaluate(row, state)
    evaluation = time.process_time() - start
    middle = len(rounds) // 2
    return Result(
        case=case,
        num_examples=case.num_clients * EXAMPLES_OF_A_CLIENT,
        setup_seconds=setup,
        seconds_per_round=sorted(cpu for cpu, _ in rounds)[middle] if rounds else float("nan"),
        wall_seconds_per_round=sorted(wall for _, wall in rounds)[middle] if rounds else float("nan"),
        checkpoint_mb_per_round=sum(size for _, size in written) / len(written) / 1e6,
        evaluation_seconds=evaluation,
        peak_mb=0.0,
    )


def table(results: list[Result]) -> Table:
    """Draw the result."""
    result = Table(title="DP-FPL, CLIP shapes, toy text tower, two workers")
    headers = (
        "",
        "clients",
        "cohort",
        "examples",
        "CPU s/round",
        "s/round",
        "checkpoint MB/round",
        "evaluation s",
        "MB",
    )
    for index, header in enumerate(headers):
        result.add_column(header, justify="left" if index == 0 else "right")
    for each in results:
        result.add_row(
            each.case.name, f"{each.case.num_clients:,}", str(each.case.cohort_size), f"{each.num_examples:,}",
            f"{each.seconds_per_round:.3f}", f"{each.wall_seconds_per_round:.3f}",
            f"{each.checkpoint_mb_per_round:.1f}", f"{each.evaluation_seconds:.2f}", f"{each.peak_mb:,.0f}",
        )  # fmt: skip
    return result


if __name__ == "__main__":
    main()
