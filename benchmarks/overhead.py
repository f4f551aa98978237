"""What the simulator costs beside the towers, as a share of a round.

A round of DP-FPL through the real loop: batches, features from the disk, clipping, factors, noise, aggregation, scores,
accounting, records and checkpoint. Tower arithmetic is the CPU time inside `DPFPL.gradients` (one forward pass
and all backward passes) and inside the encoding of prompts for evaluation and their product with the image features;
overhead is all other CPU time of the process. One worker, so that times add up; the first round warms up and is left
out. The embedded preset is as shipped; CLIP ViT-B/16 has random weights, the settings of configs/caltech101.toml and
few clients, which makes the share larger: a round's fixed costs are spread over fewer steps.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.clip_step import NUM_TEST, Ours, loaded, random_network
from benchmarks.federations import Silent, embedded_federation, fresh_start, random_federation
from benchmarks.measure import in_process, peak_mb
from benchmarks.rows import Row
from hushprompt.config import parse as configs
from hushprompt.config.schema import RunConfig
from hushprompt.federation.planning import plan_arms
from hushprompt.federation.setup import Federation, client_sizes
from hushprompt.federation.simulate import Trainer
from hushprompt.methods.dp_fpl import DPFPL
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.runs.checkpoint import Checkpoints

TITLE = "Simulator: CPU time of a round that is no tower arithmetic"


def rows(*, is_short: bool) -> list[Row]:
    """Measure both; a short run leaves CLIP out."""
    found = [in_process(embedded, 4 if is_short else 20)]
    return found if is_short else [in_process(clip, 2), *found]


class Clock:
    """Adds up the CPU time of a worker inside some functions, nested ones once."""

    def __init__(self) -> None:
        """Start at zero."""
        self.seconds, self._depth = 0.0, 0

    def timing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same, on the clock."""

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
    """Train one round, then time the following ones; `target` is the largest share wanted."""
    training = dataclasses.replace(config.training, num_rounds=num_rounds + 1)
    config = dataclasses.replace(config, references=(), training=training)
    (arm,) = plan_arms(config, client_sizes(federation.partition), federation.declared)
    clock, marks = Clock(), []

    class Watch(Silent):
        def on_round(self, record: Any) -> None:
            marks.append((time.process_time(), clock.seconds))

    progress = fresh_start()
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(1) as pool,
        mock.patch.object(DPFPL, "gradients", clock.timing(DPFPL.gradients)),
        mock.patch.object(PromptModel, "text_features", clock.timing(PromptModel.text_features)),
        mock.patch.object(PromptModel, "logits", clock.timing(PromptModel.logits)),
    ):
        checkpoints = Checkpoints(Path(folder), progress)
        Trainer(config, federation, Path(folder), pool, pool, Watch(), checkpoints).train(arm, progress)
    (start, tower_start), (end, tower_end) = marks[0], marks[-1]
    seconds, towers = (end - start) / num_rounds, (tower_end - tower_start) / num_rounds
    return Row(
        name=f"{name}, {len(federation.partition.clients)} clients", figure="share", target=target,
        ours=seconds - towers, reference=seconds, ours_mb=peak_mb(), note=f"rounds: {num_rounds}",
    )  # fmt: skip


def embedded(num_rounds: int) -> Row:
    """Measure the preset as shipped."""
    config = configs.load(configs.locate(None))
    return measure("embedded preset", config, embedded_federation(config), num_rounds, 0.30)


def clip(num_clients: int) -> Row:
    """Measure CLIP ViT-B/16, 251 examples a client."""
    overrides = ["references=[]", "privacy.delta=1e-5", 'backbone={name="toy"}']
    config = configs.load(Path(__file__).parent.parent / "configs" / "caltech101.toml", overrides)
    model = Ours(loaded(random_network())).model
    with tempfile.TemporaryDirectory() as folder:
        federation = random_federation(
            model, Path(folder), num_clients=num_clients, num_examples=251, num_test=NUM_TEST
        )
        return measure("CLIP ViT-B/16", config, federation, 1, 0.05)
