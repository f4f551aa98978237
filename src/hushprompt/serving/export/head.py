"""The linear classifier that a prompt amounts to, for whoever has its backbone's image features."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from hushprompt import files
from hushprompt.serving.prompt import Prompt

NAME = "head.safetensors"


def write(prompt: Prompt, folder: Path) -> None:
    """Write `weight` [c, d], `logit_scale`, and `bias` [c] where it is not zero: all that scores need but the image.

    Scores are logit_scale x features @ weight.T + bias, of unit-norm features. The metadata entry `hushprompt` has
    class names, the backbone and its preprocessing, and the privacy statement.

    Raises:
        DataError: the prompt's scores are not linear in an image's features.
    """
    found = prompt.classifier()
    tensors = {"weight": torch.from_numpy(found.weight), "logit_scale": torch.tensor(found.logit_scale)}
    if found.bias.any():
        tensors["bias"] = torch.from_numpy(found.bias)
    said = prompt.header
    about = {
        "class_names": said.class_names,
        "backbone": said.backbone,
        "backbone_fingerprint": said.backbone_fingerprint,
        "preprocessing": said.preprocessing,
        "privacy": prompt.privacy,
        "noise_source": said.noise_source,
    }
    files.write_tensors(folder / NAME, tensors, json.dumps(about))
