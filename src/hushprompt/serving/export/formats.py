"""The formats that a prompt can be exported to, and the folder that all of them write."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from hushprompt import checks, files
from hushprompt.errors import ConfigError, DataError
from hushprompt.runs.prompt_file import FORMAT
from hushprompt.serving.export import card, onnx_file, peft_adapter, scripts
from hushprompt.serving.loading import EXPORTED
from hushprompt.serving.prompt import Prompt
from hushprompt.serving.scoring import linear_tensors

HEAD = "head.safetensors"


def write_head(prompt: Prompt, folder: Path) -> None:
    """Write a linear classifier: `weight` [c, d], `logit_scale`, and `bias` [c] where it is not zero.

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
    files.write_tensors(folder / HEAD, tensors, json.dumps(about))


FORMATS: Mapping[str, Callable[[Prompt, Path], None]] = {
    "head": write_head,
    "onnx": onnx_file.write,
    "open_clip": scripts.write_open_clip,
    "transformers": scripts.write_transformers,
    "peft": peft_adapter.write,
    "card": card.write,
}
"""What writes a format's files into a folder, beside the prompt itself."""
GENERATIVE = ("peft", "card")
"""Formats that can hold the prompt of a generative model."""


def export_prompt(prompt: Prompt, to: str, out: Path) -> Path:
    """Write a prompt to a new folder, which `load_prompt` reads whatever the format; all of it or nothing.

    Args:
        prompt: trained, with its backbone where the format needs one.
        to: one of `FORMATS`.
        out: the folder.

    Raises:
        ConfigError: there is no such format, the folder is not empty, or the format lacks something.
        DataError: the prompt's scores are none that the format can hold.
    """
    checks.one_of(FORMATS, to=to)
    _check_kind(prompt, to)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "not empty" if out.is_dir() else "a file"
        raise ConfigError(f"{out} is {what}, and nothing is overwritten. Use another folder.")
    place = out.resolve()  # an empty folder may be named by a link
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".") as temporary:
        made = Path(temporary) / place.name
        made.mkdir(mode=0o777 if prompt.header.client_id is None else 0o700)  # of a personal prompt, for its owner
        complete = completed(prompt)
        files.write_tensors(made / EXPORTED, complete.tensors, json.dumps(dataclasses.asdict(complete.header)))
        FORMATS[to](complete, made)
        os.replace(made, place)
    return out


def _check_kind(prompt: Prompt, to: str) -> None:
    """Raise ConfigError where a format is not one for this kind of model."""
    if prompt.is_generative and to not in GENERATIVE:
        raise ConfigError(
            f"This prompt is read by a generative model, which answers in words, and {to} holds image towers whose "
            "features are compared. Use --to peft for a prompt that stands in front, --to card, or hushprompt predict."
        )
    if to == "peft" and not prompt.is_generative:
        raise ConfigError(
            "peft holds prompts of generative models, and this one belongs to a model that compares features. Use "
            "another format, such as head or onnx."
        )


def completed(prompt: Prompt) -> Prompt:
    """Return a prompt with the text features that scores need, where they are linear, and the backbone that it knows.

    Files of format 1 have neither.
    """
    if prompt.is_generative:
        return prompt
    is_loaded = hasattr(prompt.backbone, "encode_images")
    if not is_loaded:
        prompt = dataclasses.replace(prompt, device="cpu")
    header, tensors = prompt.header, dict(prompt.tensors)
    if header.backbone is None and prompt.backbone is not None and not is_loaded:
        from hushprompt.runs.prompts import of_backbone  # imports accountants, and few exports need it

        about = of_backbone(prompt.model.backbone, prompt.backbone)
        header = dataclasses.replace(header, format=FORMAT, **about)
    try:
        tensors |= linear_tensors(header, tensors, lambda: prompt.model)
    except DataError:  # no linear scores, which a format that needs them will say
        return dataclasses.replace(prompt, header=header)
    return dataclasses.replace(prompt, header=header, tensors=tensors)
