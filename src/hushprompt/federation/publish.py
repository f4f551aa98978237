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
from hushprompt.backbones.prompts import NamePosition, PromptModel
from hushprompt.config import RunConfig
from hushprompt.federation.setup import Row
from hushprompt.methods.base import Personal, Shared
from hushprompt.methods.context import ContextConfig
from hushprompt.privacy.adaptive import count_std
from hushprompt.privacy.ledger import Account
from hushprompt.privacy.plan import Audience, Channel

SERVER = (
    "The server is trusted: it sees each client's clipped sum before noise, so nothing here protects a client from the "
    "server. Secure aggregation is not part of this version."
)
NOT_PRIVATE = (
    "Not private, simulation only: training losses in records.jsonl, and the checkpoint, which belongs to the "
    "simulation. Accuracies are read from evaluation images, which this guarantee does not cover."
)
NOISE_SOURCE = {
    "seeded": "Noise comes from the run's seed: a repeatable simulation. Whoever knows the seed can remove the noise.",
    "secure": (
        "Noise comes from the operating system's cryptographic generator, as exact discrete Gaussians on a grid, and "
        "batches from streams seeded by it. The run's seed says nothing about either, so the run cannot be repeated. "
        "It can be resumed; a round that runs again is charged again."
    ),
}
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


def privacy_record(rows: list[Row], accounts: Mapping[str, list[Account]] | None = None) -> dict[str, Any]:
    """Give `privacy.json`: per row the mechanisms, their composed event, and the guarantee of every audience.

    Args:
        rows: with plans that say what was spent, or, for a run that is not trained, what is planned.
        accounts: by row, each distinct guarantee and its clients, from the ledger; None before training.
    """
    return {
        "rows": [
            {
                "row": row.label,
                "method": row.method_name,
                "channels": sorted(row.plan.channels),
                "clip_norms": {str(c): value for c, value in row.plan.clip_norms.items()},
                "noise_multipliers": {str(c): value for c, value in row.plan.noise_multipliers.items()},
                "adaptive_clipping": _adaptive_clipping(row),
                "sampling": row.plan.sampler.description,
                "num_rounds": row.num_rounds,
                "limit": row.plan.config.limit,
                "clients": [dataclasses.asdict(account) for account in (accounts or {}).get(row.label, [])],
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
        "noise_source": NOISE_SOURCE[rows[-1].plan.config.noise_source],
        "several_rows": ROWS,
    }


def _adaptive_clipping(row: Row) -> dict[str, Any] | None:
    """Say how clip norms follow the data, and how each release's noise is shared between sum and count."""
    config = row.plan.config
    if config.adaptive_quantile is None:
        return None
    return {
        "quantile": config.adaptive_quantile,
        "rate": config.adaptive_rate,
        "sum_noise_multipliers": {str(c): row.plan.sum_multiplier(c) for c in sorted(row.plan.channels)},
        "count_noise_std": {
            str(c): count_std(z, config.adaptive_share) for c, z in sorted(row.plan.noise_multipliers.items())
        },
        "note": "clip_norms are those of the first step; noise_multipliers are those of sum and count together.",
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
