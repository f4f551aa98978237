"""Writing prompt files: the product of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hushprompt import files
from hushprompt.config.values import to_plain
from hushprompt.methods.base import Personal, Published, Shared
from hushprompt.models.base import Model
from hushprompt.privacy.config import Audience, Channel
from hushprompt.prompts.prompted_model import PromptedModel
from hushprompt.runs.arm import Arm
from hushprompt.runs.identity import is_location
from hushprompt.runs.prompt_file import FORMAT
from hushprompt.runs.records import to_json

GUARANTEED = ("epsilon", "delta", "privacy_unit", "group_word", "noise_source")
"""What the file says of a guarantee beside its sentence."""


def write_prompts(
    folder: Path,
    model: PromptedModel,
    arm: Arm,
    shared: Shared,
    personal: Mapping[int, Personal],
    *,
    backbone: Any,
    client_names: Sequence[str] = (),
) -> None:
    """Write `global.safetensors` and one `client-003.safetensors` for each client, as far as the method has them.

    A client has a file where its holder knows more than the public: by LOCAL releases, or by what was declared.

    Args:
        folder: made if it is missing.
        model: that the states belong to.
        arm: whose guarantees the files state.
        shared: the server's state.
        personal: the clients', by number.
        backbone: the model's section of the config.
        client_names: of all clients, in order.
    """
    guarantees, common = arm.plan.guarantees(), _common(model, arm, backbone)

    def write(name: str, published: Published, audience: Audience, **more: Any) -> None:
        held = guarantees[audience]
        privacy = " ".join(filter(None, [held.statement(), published.declared]))
        said = {"privacy": privacy, **{name: getattr(held, name) for name in GUARANTEED}}
        if Audience.SERVER in guarantees:
            said["server"] = guarantees[Audience.SERVER].statement()
        metadata = to_json({**common, "prompt": published.prompt, **more, **said})
        tensors = {**published.tensors, **_linear(model, arm, published)}
        files.write_tensors(folder / f"{name}.safetensors", tensors, json.dumps(metadata))

    public = arm.method.public_file(model, shared)
    if public is not None:
        write("global", public, Audience.PUBLIC)
    for client_id, state in personal.items():
        mine = arm.method.personal_file(model, shared, state)
        if mine is not None and (mine.declared or Channel.LOCAL in arm.plan.channels):
            whose = {"client_id": client_id, "client_name": client_names[client_id]}
            write(f"client-{client_id:03d}", mine, Audience.PERSONAL, **whose)


def _common(model: PromptedModel, arm: Arm, backbone: Any) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "method": arm.method_name,
        "arm": arm.label,
        "settings": portable(to_plain(arm.method)),
        "rank": getattr(arm.method, "rank", None),
        "backbone_fingerprint": model.backbone.fingerprint,
        **of_backbone(model.backbone, backbone),
        "class_names": model.class_names,
        "task": "classes" if model.class_names else "answers",
    }


def of_backbone(frozen: Model, section: Any) -> dict[str, Any]:
    """Return what a prompt file says of its backbone: the section of the config, and how examples are made ready."""
    return {
        "backbone": portable(to_plain(section)),
        "modality": frozen.capabilities.modality,
        "template": frozen.template,
        "logit_scale": frozen.logit_scale,
        "preprocessing": dict(frozen.preprocessing),
    }


@torch.no_grad()
def _linear(model: PromptedModel, arm: Arm, published: Published) -> dict[str, Tensor]:
    """Return text features and logit scale, with which scores need no text tower; nothing where they are not linear."""
    if published.text_features_fn is None or arm.method.feature_kind != "pooled":
        return {}
    return {"text_features": published.text_features_fn().float(), "logit_scale": torch.tensor(model.logit_scale)}


def portable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section of a config without what says where something lies on this machine.

    >>> portable({"name": "open_clip", "architecture": "ViT-B-32", "checkpoint": "/models/b32.pt"})
    {'name': 'open_clip', 'architecture': 'ViT-B-32'}
    """
    kept = {key: portable(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    return {key: value for key, value in kept.items() if not (isinstance(value, str) and _is_local(key, value))}


def _is_local(key: str, value: str) -> bool:
    """Tell whether a setting is the path of a file, and not, say, a name on a model hub."""
    path = Path(value.removeprefix("local-dir:"))
    if path.is_absolute() or value.startswith(("~", "local-dir:")) or ("/" in value and path.exists()):
        return True
    return is_location(f"backbone.{key}") and not re.fullmatch(r"[\w.-]+/[\w.-]+", value)
