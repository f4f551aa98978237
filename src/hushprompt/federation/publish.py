"""What leaves a run: prompt files that say what they are, and the record of who sees what at which epsilon."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hushprompt import files
from hushprompt.backbones.prompts import PromptModel
from hushprompt.config import RunConfig
from hushprompt.federation.setup import Row
from hushprompt.methods.base import Personal, Published, Shared
from hushprompt.privacy.plan import Audience, Channel

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
SIMULATED_NOISE = (
    "Noise comes from the run's seed: a repeatable simulation. Whoever knows the seed can remove the noise."
)
ROWS = "Each row is accounted for on its own; publishing several rows of one run adds up their privacy losses."


def write_prompts(folder: Path, model: PromptModel, row: Row, shared: Shared, personal: tuple[Personal, ...]) -> None:
    """Write `global.safetensors` and one `client-003.safetensors` a client, as far as the method has them."""
    guarantees = row.plan.guarantees()
    common = {
        "format": "hushprompt prompt 1",
        "method": row.method_name,
        "backbone_fingerprint": model.backbone.fingerprint,
        "class_names": model.class_names,
        "rank": getattr(row.method, "rank", None),
    }

    def write(name: str, published: Published, audience: Audience, **more: int) -> None:
        metadata = {**common, "prompt": published.prompt, **more, "privacy": guarantees[audience].statement()}
        files.write_tensors(folder / f"{name}.safetensors", published.tensors, json.dumps(metadata))

    public = row.method.public_file(model, shared)
    if public is not None:
        write("global", public, Audience.PUBLIC)
    if Channel.LOCAL not in row.plan.channels:
        return
    for client_id, state in enumerate(personal):
        mine = row.method.personal_file(model, shared, state)
        assert mine is not None, "a method with a local channel has something of its own for each client"
        write(f"client-{client_id:03d}", mine, Audience.PERSONAL, client_id=client_id)


def privacy_record(rows: list[Row]) -> dict[str, Any]:
    """Give `privacy.json`: per row the mechanisms, their composed event, and the guarantee of every audience."""
    return {
        "rows": [
            {
                "row": row.label,
                "method": row.method_name,
                "channels": sorted(row.plan.channels),
                "clip_norms": {str(c): value for c, value in row.plan.clip_norms.items()},
                "clipped": "examples" if row.plan.batch_clipping is None else "batches",
                "sensitivities": {str(c): row.plan.sensitivity(c) for c in row.plan.clip_norms},
                "noise_multipliers": {str(c): value for c, value in row.plan.noise_multipliers.items()},
                "sampling": row.plan.sampler.description,
                "num_rounds": row.num_rounds,
                "participation": participation(row),
                "audiences": {
                    str(audience): {**guarantee.to_json(), "statement": guarantee.statement()}
                    for audience, guarantee in row.plan.guarantees().items()
                },
            }
            for row in rows
        ],
        "other_client": "Sees what the public sees, and has the same guarantee as the public.",
        "server": UNTRUSTED_SERVER if rows[-1].plan.config.noise_at == "client" else TRUSTED_SERVER,
        "not_private": NOT_PRIVATE,
        "noise_source": SIMULATED_NOISE,
        "several_rows": ROWS,
    }


def participation(row: Row) -> dict[str, Any]:
    """Say who takes part how often: clients counted by their number of rounds, each with its own epsilon."""
    cohorts = row.cohorts
    rounds, num_clients = np.unique(cohorts.rounds_of_clients(), return_counts=True)
    own = [{str(who): row.plan.epsilon(who, count) for who in row.plan.audiences} for count in rounds.tolist()]
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
