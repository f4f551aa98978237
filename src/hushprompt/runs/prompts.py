"""Prompt files, which say themselves what they are: the product of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hushprompt import files
from hushprompt.errors import DataError
from hushprompt.methods.base import Personal, Published, Shared
from hushprompt.privacy.config import Audience, Channel
from hushprompt.prompts.prompt_model import PromptModel
from hushprompt.runs.arm import Arm
from hushprompt.runs.records import read_tensors

FORMAT = "hushprompt prompt 1"


@dataclass(frozen=True, kw_only=True)
class PromptHeader:
    """What a prompt file says of itself."""

    format: str
    """`FORMAT`."""
    prompt: Any
    """Which prompt it is, in the words of the method."""
    method: str
    backbone_fingerprint: str
    """Of the model whose embeddings the tensors are; they mean nothing to another one."""
    class_names: tuple[str, ...]
    privacy: str
    """The guarantee for whoever holds the file, in one sentence."""
    client_id: int | None = None
    """Whose personal prompt it is; None: everybody's."""
    rank: int | None = None
    """Rank of a factorized personal part, where the method has one."""
    noise_source: str | None = None
    """Where noise came from: "seeded" makes it a simulation; None in files of versions that did not say."""


def write_prompts(folder: Path, model: PromptModel, arm: Arm, shared: Shared, personal: Mapping[int, Personal]) -> None:
    """Write `global.safetensors` and one `client-003.safetensors` for each client, as far as the method has them."""
    guarantees = arm.plan.guarantees()
    common = {
        "format": FORMAT,
        "method": arm.method_name,
        "backbone_fingerprint": model.backbone.fingerprint,
        "class_names": model.class_names,
        "rank": getattr(arm.method, "rank", None),
    }

    def write(name: str, published: Published, audience: Audience, **more: int) -> None:
        held = guarantees[audience]
        said = {"privacy": held.statement(), "noise_source": held.noise_source}
        metadata = {**common, "prompt": published.prompt, **more, **said}
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


def read_prompt(path: Path) -> tuple[PromptHeader, dict[str, Tensor]]:
    """Read a prompt file: what it says of itself, and what the method published, by name.

    Raises:
        DataError: it is missing, damaged, or no prompt file of this version.
    """
    try:
        header, tensors = read_tensors(path, PromptHeader)
    except ValueError as error:
        raise DataError(f"{path} is no prompt file ({error}). Give a file of a run's prompts folder.") from error
    if header.format != FORMAT:
        raise DataError(f"{path} has the format {header.format!r}, but this version reads {FORMAT!r}.")
    return header, tensors
