"""What leaves a run: prompt files that say what they are, and the record of who sees what at which epsilon."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hushprompt import files
from hushprompt.config.schema import RunConfig
from hushprompt.data.base import Dataset
from hushprompt.data.partitions.base import Partition
from hushprompt.evaluation.confusion import Confusion
from hushprompt.federation.setup import Arm
from hushprompt.methods.base import Personal, Published, Shared
from hushprompt.privacy.adaptive import count_std
from hushprompt.privacy.config import Audience, Channel
from hushprompt.privacy.ledger import Account
from hushprompt.privacy.metrics import LOCAL_SENSITIVITY, MetricsPlan, neighbor_sensitivity
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.runs import records

TRUSTED_SERVER = (
    "The server is trusted: it sees each client's clipped sum before noise, so nothing here protects a client from the "
    "server. Secure aggregation is not part of this version."
)
UNTRUSTED_SERVER = (
    "The server need not be trusted with the data: every client adds the noise itself, in full, before anything leaves "
    "it. The server has the guarantee of the audience named server, from what it receives of each client alone."
)
NOT_PRIVATE = (
    "Not private, simulation only: training losses in records.jsonl, and the checkpoint, which belongs to the "
    "simulation. Accuracies are read from evaluation images, which this guarantee does not cover."
)
LOSSES_NOT_PRIVATE = (
    "Not private, simulation only: training losses in records.jsonl, and the checkpoint, which belongs to the "
    "simulation."
)
EVALUATION_IMAGES = (
    "{statement} It covers all accuracies of all arms of this run, which come from noisy counts: at each evaluation, "
    "noise of standard deviation {local:.4g} images on each client's local count and {neighbor:.4g} on its neighbor "
    "count. "
    "Whoever evaluates is trusted: it sees the counts before noise. The budget, limit and ledger of training, and the "
    "guarantees of its examples, are apart from this."
)
STAYS_AT_HOME = (
    "A federation of separate machines: losses, scores, personal prompts and features stay with each client. The "
    "server knows who takes part, when, and each client's number of training examples."
)
NOISE_SOURCE = {
    "seeded": "Noise comes from the run's seed: a repeatable simulation. Whoever knows the seed can remove the noise.",
    "secure": (
        "Noise comes from the operating system's cryptographic generator, as exact discrete Gaussians on a grid, and "
        "batches from streams seeded by it. The run's seed says nothing about either, so the run cannot be repeated. "
        "It can be resumed; a round that runs again is charged again."
    ),
}
COUNTS_NOT_PRIVATE = (
    "Not private, simulation only: counts of a client's examples by class are not covered by any guarantee."
)
ARMS = "Each arm is accounted for on its own; publishing several arms of one run adds up their privacy losses."


def write_prompts(folder: Path, model: PromptModel, arm: Arm, shared: Shared, personal: Mapping[int, Personal]) -> None:
    """Write `global.safetensors` and one `client-003.safetensors` for each client, as far as the method has them."""
    guarantees = arm.plan.guarantees()
    common = {
        "format": "hushprompt prompt 1",
        "method": arm.method_name,
        "backbone_fingerprint": model.backbone.fingerprint,
        "class_names": model.class_names,
        "rank": getattr(arm.method, "rank", None),
    }

    def write(name: str, published: Published, audience: Audience, **more: int) -> None:
        metadata = {**common, "prompt": published.prompt, **more, "privacy": guarantees[audience].statement()}
        files.write_tensors(folder / f"{name}.safetensors", published.tensors, json.dumps(metadata))

    public = arm.method.public_file(model, shared)
    if public is not None:
        write("global", public, Audience.PUBLIC)
    if Channel.LOCAL not in arm.plan.channels:
        return
    for client_id, state in personal.items():
        mine = arm.method.personal_file(model, shared, state)
        assert mine is not None, "a method with a local channel has something of its own for each client"
        write(f"client-{client_id:03d}", mine, Audience.PERSONAL, client_id=client_id)


def privacy_record(
    arms: list[Arm],
    accounts: Mapping[str, list[Account]] | None = None,
    metrics: MetricsPlan | None = None,
    num_released: int | None = None,
) -> dict[str, Any]:
    """Return `privacy.json`: per arm the mechanisms, their composed event, and the guarantee of every audience.

    Args:
        arms: with plans that say what was spent, or, for a run that is not trained, what is planned.
        accounts: by arm, each distinct guarantee and its clients, from the ledger; None before training.
        metrics: how evaluation counts get noise; None: accuracies are exact.
        num_released: evaluations that were released; None: all that are planned.
    """
    return {
        "arms": [
            {
                "arm": arm.label,
                "method": arm.method_name,
                "channels": sorted(arm.plan.channels),
                "clip_norms": {str(c): value for c, value in arm.plan.release_plan.clip_norms.items()},
                "clipped": "examples" if arm.plan.release_plan.batch_clipping is None else "batches",
                "sensitivities": {
                    str(c): arm.plan.release_plan.sensitivity(c) for c in arm.plan.release_plan.clip_norms
                },
                "noise_multipliers": {str(c): value for c, value in arm.plan.release_plan.noise_multipliers.items()},
                "adaptive_clipping": _adaptive_clipping(arm),
                "sampling": arm.plan.sampler.description,
                "num_rounds": arm.num_rounds,
                "limit": arm.plan.limit,
                "clients": [dataclasses.asdict(account) for account in (accounts or {}).get(arm.label, [])],
                "participation": participation(arm),
                "audiences": {
                    str(audience): {**guarantee.to_json(), "statement": guarantee.statement()}
                    for audience, guarantee in arm.plan.guarantees().items()
                },
            }
            for arm in arms
        ],
        "other_client": "Sees what the public sees, and has the same guarantee as the public.",
        "server": UNTRUSTED_SERVER if arms[-1].plan.config.noise_at == "client" else TRUSTED_SERVER,
        "not_private": NOT_PRIVATE if metrics is None else LOSSES_NOT_PRIVATE,
        **({} if metrics is None else _evaluation_images(metrics, num_released)),
        "noise_source": NOISE_SOURCE[arms[-1].plan.config.noise_source],
        "several_arms": ARMS,
    }


def _evaluation_images(metrics: MetricsPlan, num_released: int | None) -> dict[str, Any]:
    """Return the guarantee of evaluation images in words, and what it follows from."""
    guarantee = metrics.guarantee(num_released)
    words = EVALUATION_IMAGES.format(
        statement=guarantee.statement(),
        local=metrics.std_local,
        neighbor=metrics.std_neighbor,
    )
    return {
        "evaluation_images": words,
        "evaluation": {
            "guarantee": {**guarantee.to_json(), "statement": guarantee.statement()},
            "num_clients": metrics.num_clients,
            "num_planned": metrics.num_releases,
            "sensitivities": {"local": LOCAL_SENSITIVITY, "neighbor": neighbor_sensitivity(metrics.num_clients)},
            "noise_stds": {"local": metrics.std_local, "neighbor": metrics.std_neighbor},
        },
    }


def _adaptive_clipping(arm: Arm) -> dict[str, Any] | None:
    """Say how clip norms follow the data, and how each release's noise is shared between sum and count."""
    config = arm.plan.config
    if config.adaptive_quantile is None:
        return None
    return {
        "quantile": config.adaptive_quantile,
        "rate": config.adaptive_rate,
        "sum_noise_multipliers": {str(c): arm.plan.release_plan.sum_multiplier(c) for c in sorted(arm.plan.channels)},
        "count_noise_std": {
            str(c): count_std(z, config.adaptive_share)
            for c, z in sorted(arm.plan.release_plan.noise_multipliers.items())
        },
        "note": "clip_norms are those of the first step; noise_multipliers are those of sum and count together.",
    }


def participation(arm: Arm) -> dict[str, Any]:
    """Say who takes part how often: clients counted by their number of rounds, each with its own epsilon."""
    cohorts = arm.cohorts
    rounds, num_clients = np.unique(cohorts.rounds_of_clients(), return_counts=True)
    own = [{str(who): arm.plan.epsilon(who, count) for who in arm.plan.audiences} for count in rounds.tolist()]
    statement = ""
    if cohorts.is_partial and len(cohorts):
        statement = (
            f"{cohorts.cohort_size} of {cohorts.num_clients} clients take part in a round, by a public schedule from "
            "which no amplification is claimed: the guarantees are those of a client with the most rounds, "
            f"{rounds.max()} of {len(cohorts)}. A client that fails in a round is charged for it."
        )
    return {
        "cohort_size": cohorts.cohort_size,
        "num_clients": cohorts.num_clients,
        "statement": statement,
        "clients_by_rounds": [
            {"rounds": count, "num_clients": number, "epsilon": epsilon}
            for count, number, epsilon in zip(rounds.tolist(), num_clients.tolist(), own, strict=True)
        ],
    }


def partition_record(dataset: Dataset, partition: Partition) -> dict[str, Any]:
    """Return `partition.json`: each client's name and its examples by split and class."""
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


def confusion_record(arm: Arm, counts: Confusion) -> dict[str, Any]:
    """Return a file of `confusion/`: predictions of one arm after its last round, by true and predicted class."""
    return {
        "arm": arm.label,
        "local": records.sparse_rows(counts.local),
        "neighbor": records.sparse_rows(counts.neighbor),
    }


def provenance(config: RunConfig) -> dict[str, str]:
    """Return what made a result, so that it can be made again."""
    return {
        "hushprompt": importlib.metadata.version("hushprompt"),
        "config_identity": config.identity(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "dp_accounting": importlib.metadata.version("dp-accounting"),
    }
