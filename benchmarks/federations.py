"""Federations of random features, for benchmarks: any number of clients and examples, on the disk as in real runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.format import open_memmap

from hushprompt.config.schema import RunConfig
from hushprompt.data.partitions.base import ClientShard, Partition
from hushprompt.evaluation.splits import client_splits
from hushprompt.features.store import StoredFeatures
from hushprompt.federation.setup import Federation, assemble, load_model, make_partition
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.runs.arm import Arm
from hushprompt.runs.checkpoint import Progress
from hushprompt.runs.records import RoundRecord

CHUNK = 50_000
"""Examples that are drawn at a time."""


class Silent:
    """An observer that keeps the records."""

    def __init__(self) -> None:
        """Start empty."""
        self.records: list[RoundRecord] = []

    def on_setup(self, what: str, done: int, total: int) -> None:
        """Images are being encoded."""

    def on_arm(self, arm: Arm, index: int, num_arms: int, num_rounds_done: int) -> None:
        """An arm begins."""

    def on_round(self, record: RoundRecord) -> None:
        """A round is done."""
        self.records.append(record)


def fresh_start() -> Progress:
    """Return the progress of a run that has not begun."""
    return Progress(
        config_identity="", arm_index=0, num_rounds_done=0, arm_seconds=0.0, records_size=0, finished_arms=[]
    )


def embedded_federation(config: RunConfig) -> Federation:
    """Load the embedded model and drawings, whose features are encoded where the cache lacks them."""
    dataset = config.data.load()
    return assemble(config, load_model(config, dataset, []), dataset, make_partition(config, dataset), lambda *_: None)


def random_federation(
    model: PromptModel, folder: Path, *, num_clients: int, num_examples: int, num_test: int
) -> Federation:
    """Return clients `num_examples` random unit-norm features each, memory-mapped as float16, with random labels."""
    rng = np.random.default_rng(0)
    total, dim = num_clients * num_examples, model.backbone.feature_dim
    path = folder / f"features-{total}.npy"
    array = open_memmap(path, mode="w+", dtype=np.float16, shape=(total, 1, dim))
    for start in range(0, total, CHUNK):
        count = min(CHUNK, total - start)
        array[start : start + count, 0] = F.normalize(torch.from_numpy(rng.normal(size=(count, dim)))).numpy()
    array.flush()
    del array
    test = F.normalize(torch.from_numpy(rng.normal(size=(num_test, dim))).float())
    test_of = np.array_split(np.arange(num_test), num_clients)
    labels = rng.integers(model.num_classes, size=total)
    clients = []
    for client_id in range(num_clients):
        mine = np.arange(client_id * num_examples, (client_id + 1) * num_examples)
        classes = tuple(np.unique(labels[mine]).tolist())
        clients.append(ClientShard(client_id, classes, {"train": mine, "test": test_of[client_id]}))
    partition = Partition(tuple(clients))
    return Federation(
        model=model,
        train_features={"pooled": StoredFeatures(np.load(path, mmap_mode="r"))},
        train_labels=torch.from_numpy(labels),
        eval_features={"pooled": test.to(model.device)},
        eval_labels=torch.from_numpy(rng.integers(model.num_classes, size=num_test)),
        partition=partition,
        splits=client_splits(partition, "test"),
    )
