"""What leaves a run: prompt files that say what they are, and the record of who sees what at which epsilon."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hushprompt import files, records
from hushprompt.backbones.prompts import NamePosition, PromptModel
from hushprompt.config import RunConfig
from hushprompt.data.base import Dataset
from hushprompt.data.partition import Partition
from hushprompt.evaluation.evaluate import Scores
from hushprompt.federation.setup import Row
from hushprompt.methods.base import Personal, Shared
from hushprompt.methods.context import ContextConfig
from hushprompt.privacy.plan import Audience, Channel

SERVER = (
    "The server is trusted: it sees each client's clipped sum before noise, so nothing here protects a client from the "
    "server. Secure aggregation is not part of this version."
)
NOT_PRIVATE = (
    "Not private, simulation only: training losses in records.jsonl, and the checkpoint, which belongs to the "
    "simulation. Accuracies are read from evaluation images, which this guarantee does not cover."
)
SIMULATED_NOISE = (
    "Noise comes from the run's seed: a repeatable simulation. Whoever knows the seed can remove the noise."
)
COUNTS_NOT_PRIVATE = (
    "Not private, simulation only: counts of a client's examples by class are not covered by any guarantee."
)
ROWS = "Each row is accounted for on its own; publishing several rows of one run adds up their privacy losses."


def write_prompts(folder: Path, model: PromptModel, row: Row, shared: Shared, personal: tuple[Personal, ...]) -> None:
    """Write `global.safetensors` and one `client-003.safetensors` a client, as far as the method has them."""
    guarantees = row.plan.guarantees()
    name_position: NamePosition = row.method.name_position if isinstance(row.method, ContextConfig) else "end"
    common = {
        "format": "hushprompt prompt 1",
        "method": row.method_name,
        "backbone_fingerprint": model.backbone.fingerprint,
        "class_names": model.class_names,
        "rank": getattr(row.method, "rank", None),
    }
    shared_context = row.method.shared_context(shared)
    if shared_context is not None:
        statement = guarantees[Audience.PUBLIC].statement()
        layout = model.layout(shared_context, name_position)
        metadata = json.dumps({**common, "prompt": layout, "privacy": statement})
        files.write_tensors(folder / "global.safetensors", {"context": shared_context}, metadata)
    if Channel.LOCAL not in row.plan.channels:
        return
    for client_id, state in enumerate(personal):
        context = row.method.context(shared, state)
        assert context is not None, "a method with a local channel has a context for each client"
        statement = guarantees[Audience.PERSONAL].statement()
        layout = model.layout(context, name_position)
        metadata = json.dumps({**common, "prompt": layout, "client_id": client_id, "privacy": statement})
        files.write_tensors(folder / f"client-{client_id:03d}.safetensors", {"context": context}, metadata)


def privacy_record(rows: list[Row]) -> dict[str, Any]:
    """Give `privacy.json`: per row the mechanisms, their composed event, and the guarantee of every audience."""
    return {
        "rows": [
            {
                "row": row.label,
                "method": row.method_name,
                "channels": sorted(row.plan.channels),
                "clip_norms": {str(c): value for c, value in row.plan.clip_norms.items()},
                "noise_multipliers": {str(c): value for c, value in row.plan.noise_multipliers.items()},
                "sampling": row.plan.sampler.description,
                "num_rounds": row.num_rounds,
                "audiences": {
                    str(audience): {**guarantee.to_json(), "statement": guarantee.statement()}
                    for audience, guarantee in row.plan.guarantees().items()
                },
            }
            for row in rows
        ],
        "other_client": "Sees what the public sees, and has the same guarantee as the public.",
        "server": SERVER,
        "not_private": NOT_PRIVATE,
        "noise_source": SIMULATED_NOISE,
        "several_rows": ROWS,
    }


def partition_record(dataset: Dataset, partition: Partition) -> dict[str, Any]:
    """Give `partition.json`: each client's name and its examples by split and class."""
    num_classes = len(dataset.class_names)
    return {
        "note": COUNTS_NOT_PRIVATE,
        "dataset": dataset.name,
        "class_names": list(dataset.class_names),
        "client_names": [client.name or f"client {client.client_id}" for client in partition.clients],
        **{
            name: records.sparse_rows(partition.class_counts(split.labels, num_classes, name))
            for name, split in dataset.splits.items()
        },
    }


def confusion_record(row: Row, scores: Scores) -> dict[str, Any]:
    """Give a file of `confusion/`: predictions of one row after its last round, by true and predicted class."""
    return {
        "row": row.label,
        "local": records.sparse_rows(scores.confusion_local.numpy()),
        "neighbor": records.sparse_rows(scores.confusion_neighbor.numpy()),
    }


def provenance(config: RunConfig) -> dict[str, str]:
    """Give what made a result, so that it can be made again."""
    return {
        "hushprompt": importlib.metadata.version("hushprompt"),
        "config_identity": config.identity(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "dp_accounting": importlib.metadata.version("dp-accounting"),
    }
