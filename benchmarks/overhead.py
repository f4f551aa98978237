"""What the simulator costs beside the towers: `python benchmarks/overhead.py [--short] [--out FILE.json]`.

A round of DP-FPL through the real loop: batches, features from the disk, clipping, factors, noise, aggregation, scores,
accounting, records and checkpoint. Tower arithmetic is the CPU time inside `DPFPL.gradients` (one forward pass
and all backward passes) and inside the encoding of prompts for evaluation and their product with the image features;
overhead is all other CPU time of the process. One worker, so that times add up; the first round warms up and is left
out. The embedded preset is as shipped; CLIP ViT-B/16 has random weights, ten clients and Caltech101's shapes.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console
from rich.table import Table

import clip_step
import hushprompt
from federations import Silent, random_federation
from hushprompt import config as configs
from hushprompt.backbones.prompts import PromptModel
from hushprompt.config import RunConfig
from hushprompt.federation.checkpoint import Checkpoints, Progress
from hushprompt.federation.setup import Federation, assemble, client_sizes, cut, load_model, plan_rows
from hushprompt.federation.simulate import Trainer
from hushprompt.methods.dp_fpl import DPFPL
from measure import machine, write_json


@dataclass(frozen=True)
class Row:
    """One line of the result."""

    name: str
    num_clients: int
    num_rounds: int
    """Rounds that were timed."""
    seconds_per_round: float
    """CPU time of the process."""
    tower_seconds_per_round: float
    """Of these, tower arithmetic."""
    target: float
    """Largest share of overhead wanted."""

    @property
    def overhead(self) -> float:
        """Share of a round that is no tower arithmetic."""
        return 1 - self.tower_seconds_per_round / self.seconds_per_round

    def to_plain(self) -> dict[str, Any]:
        """Give what the JSON file says."""
        return {**dataclasses.asdict(self), "overhead": self.overhead, "is_target_met": self.overhead <= self.target}


class Clock:
    """Adds up the CPU time of a worker inside some functions, nested ones once."""

    def __init__(self) -> None:
        """Start at zero."""
        self.seconds, self._depth = 0.0, 0

    def timing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Give a function that does the same, on the clock."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += time.thread_time() - start

        return timed


def measure(name: str, config: RunConfig, federation: Federation, num_rounds: int, target: float) -> Row:
    """Train one round, then time the following ones."""
    training = dataclasses.replace(config.training, num_rounds=num_rounds + 1)
    config = dataclasses.replace(config, references=(), training=training)
    (row,) = plan_rows(config, client_sizes(federation.partition))
    clock, marks = Clock(), []

    class Watch(Silent):
        def on_round(self, record: Any) -> None:
            marks.append((time.process_time(), clock.seconds))

    progress = Progress(
        config_identity="", row_index=0, num_rounds_done=0, row_seconds=0.0, records_size=0, finished_rows=[]
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(1) as pool,
        mock.patch.object(DPFPL, "gradients", clock.timing(DPFPL.gradients)),
        mock.patch.object(PromptModel, "text_features", clock.timing(PromptModel.text_features)),
        mock.patch.object(PromptModel, "logits", clock.timing(PromptModel.logits)),
    ):
        checkpoints = Checkpoints(Path(folder), progress)
        Trainer(config, federation, Path(folder), pool, Watch(), checkpoints).train(row, progress)
    (start, tower_start), (end, tower_end) = marks[0], marks[-1]
    return Row(
        name, len(federation.partition.clients), num_rounds, (end - start) / num_rounds,
        (tower_end - tower_start) / num_rounds, target,
    )  # fmt: skip


def embedded(num_rounds: int) -> Row:
    """Measure the preset as shipped."""
    config = configs.load(configs.locate(None))
    dataset = config.data.load()
    federation = assemble(config, load_model(config, dataset, []), dataset, cut(config, dataset), lambda *_: None)
    return measure("embedded preset", config, federation, num_rounds, 0.30)


def clip(num_rounds: int, num_clients: int) -> Row:
    """Measure CLIP ViT-B/16 with the settings of configs/caltech101.toml, 251 examples a client."""
    overrides = ["references=[]", "privacy.delta=1e-5", 'backbone={name="toy"}']
    config = configs.load(Path(__file__).parent.parent / "configs" / "caltech101.toml", overrides)
    model = clip_step.build(config.runtime.memory_mb)[0].model
    with tempfile.TemporaryDirectory() as folder:
        federation = random_federation(
            model, Path(folder), num_clients=num_clients, num_examples=251, num_test=clip_step.NUM_TEST
        )
        return measure("CLIP ViT-B/16", config, federation, num_rounds, 0.05)


def table(rows: list[Row]) -> Table:
    """Draw the result."""
    result = Table(title="CPU seconds a round, one thread")
    for index, header in enumerate(("", "clients", "rounds", "round s", "towers s", "overhead", "target")):
        result.add_column(header, justify="left" if index == 0 else "right")
    for row in rows:
        result.add_row(
            row.name, str(row.num_clients), str(row.num_rounds), f"{row.seconds_per_round:.3f}",
            f"{row.tower_seconds_per_round:.3f}", f"{row.overhead:.1%}",
            f"{row.target:.0%}" + ("" if row.overhead <= row.target else " missed"),
        )  # fmt: skip
    return result


def main() -> None:
    """Measure, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer rounds; CLIP with two clients")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    hushprompt.load_registries()
    short = arguments.short
    rows = [embedded(4 if short else 20), clip(1 if short else 3, 2 if short else 10)]
    Console(width=100).print(table(rows))
    if arguments.out:
        values = {"machine": machine(), "is_short": short, "rows": [row.to_plain() for row in rows]}
        write_json(arguments.out, values)


if __name__ == "__main__":
    main()
